"""A daemon that answers from a script, so that the command line can be tested without models or devices."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from teengined.protocol import messages as wire
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode

__all__ = ["ScriptedDaemon"]

LIMITS = CodecLimits()
Script = Callable[[Any], Sequence[Any]]


class ScriptedDaemon:
    """Answers each message with what `script[type(message)]` returns; keeps what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.endpoint = f"ipc://{directory}/teengined.sock"
        self.script: dict[type, Script] = {
            wire.Hello: lambda _: [wire.Welcome(version="0", host="h", pid=1)],
            wire.Cancel: lambda _: [],
        }
        self.asked: list[Any] = []
        self._stopping = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._bound.wait(10)

    def answer(self, kind: type, *replies: Any) -> None:
        self.script[kind] = lambda _: replies

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10)

    def _serve(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 0)
            router.bind(self.endpoint)
            self._bound.set()
            while not self._stopping.is_set():
                if router.poll(20):
                    identity, *frames = router.recv_multipart()
                    for reply in self._replies(decode(frames, wire.CLIENT_MESSAGES, LIMITS)):
                        router.send_multipart([identity, *reply])

    def _replies(self, envelope: Envelope) -> Iterator[list[bytes]]:
        self.asked.append(envelope.message)
        for reply in self.script[type(envelope.message)](envelope.message):
            answer = Envelope(correlation=envelope.correlation, message=reply)
            yield encode(answer, wire.CLIENT_MESSAGES, LIMITS)
