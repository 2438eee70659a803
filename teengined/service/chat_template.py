"""A model's chat template. Templates come with packages and are not trusted: another process renders them.

`rendering/sandbox.py` says what a template may reach, `rendering/process.py` how its time and memory are bounded. This
side starts that process at the first conversation, asks it, and turns what it says into our errors.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from teengined.core.errors import QueueFull, RequestError
from teengined.core.records import to_mapping
from teengined.core.request import ChatMessage
from teengined.service.rendering.exchange import FAILED, RENDERED, RenderBounds, receive_all
from teengined.service.rendering.variables import template_variables

__all__ = ["ChatTemplate"]

_PROGRAM = (sys.executable, "-P", "-m", "teengined.service.rendering.process")
# Nothing of the daemon's environment is the template's business but where Python finds itself.
_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
# Renderings of one template at once: an ordinary one takes milliseconds, and an endless one keeps a core for a second.
_MAX_AT_ONCE = 4
# What the process may say beyond the text that it renders, and how long after its own deadline it is waited for.
_SPARE_BYTES = 4096
_MAX_BYTES_OF_CHARACTER = 4  # in UTF-8
_GRACE_SECONDS = 2.0
# Starting an interpreter and importing jinja takes 0.1 s on an idle machine.
_START_SECONDS = 30.0


class ChatTemplate:
    """Compiled at its first rendering. Safe to use from several threads; a call blocks for `wall_seconds` at most."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], bounds: RenderBounds) -> None:
        """Start nothing yet. `special_tokens` maps `bos_token` and the like to their text."""
        self._opening = {"source": source, "special_tokens": dict(special_tokens), "bounds": to_mapping(bounds)}
        self._bounds = bounds
        self._places = threading.BoundedSemaphore(_MAX_AT_ONCE)
        self._starting = threading.Lock()
        self._renderer: _Renderer | None = None
        self._refusal: RequestError | None = None

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
        *,
        now: datetime,
    ) -> str:
        """Return the prompt for a conversation, up to where the assistant speaks.

        `tools` and `options` are as `rendering/variables.py` parses them; a template that tells the date tells `now`.

        Raises:
            RequestError: the template is not valid, refuses these messages, fails, or takes more than its bounds.
            QueueFull: others keep the template busy.
        """
        question = _json_of({"variables": template_variables(messages, tools, options), "now": now.isoformat()})
        if len(question) > self._bounds.max_question_bytes:
            raise RequestError(f"messages and tools together may have {self._bounds.max_question_bytes} bytes as JSON")
        if not self._places.acquire(timeout=self._bounds.wall_seconds):
            raise QueueFull("too many conversations wait for their chat template", retry_after_seconds=1.0)
        try:
            return self._ask(question)
        finally:
            self._places.release()

    def close(self) -> None:
        """End the process, and with it every rendering under way. A later rendering starts another one."""
        with self._starting:
            self._end()

    def _ask(self, question: bytes) -> str:
        reply = self._running().ask(question, self._bounds)
        if not reply and self._has_ended():
            # It was killed while it waited, as the first to go where memory is short; its successor is asked once.
            reply = self._running().ask(question, self._bounds)
        return self._text_of(reply)

    def _has_ended(self) -> bool:
        with self._starting:
            return self._renderer is None or self._renderer.has_ended()

    def _running(self) -> "_Renderer":
        with self._starting:
            if self._refusal is not None:
                raise self._refusal
            if self._renderer is None or self._renderer.has_ended():
                self._end()
                self._renderer = self._start()
            return self._renderer

    def _start(self) -> "_Renderer":
        renderer = _Renderer()
        reply = renderer.ask(_json_of(self._opening), self._bounds, _START_SECONDS)
        try:
            self._text_of(reply)
        except RequestError as refusal:
            renderer.close()
            if reply:
                self._refusal = refusal  # It would be the same each time, and cost as much.
            raise  # Without a reply, it was killed or kept waiting; the next one may be luckier.
        return renderer

    def _end(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _text_of(self, reply: bytes) -> str:
        text = reply[1:].decode("utf-8", errors="replace")
        if reply[:1] == RENDERED:
            return text
        bounds = self._bounds
        problem = text if reply[:1] == FAILED else f"was stopped: it may run for {bounds.cpu_seconds:g} s"
        raise RequestError(
            f"the model's chat template {problem}",
            hint="most templates want roles system, user and assistant, the last one user",
        )


def _json_of(value: object) -> bytes:
    """Return JSON in ASCII.

    Raises:
        RequestError: nested too deeply.
    """
    try:
        return json.dumps(value).encode("ascii")
    except RecursionError as error:
        raise RequestError("tools, template options or arguments of tool calls are nested too deeply") from error


class _Renderer:
    """The process and the socket to it. It ends when it is closed, when nobody holds it, and when the daemon ends."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                _PROGRAM,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**environment, "LC_ALL": "C.UTF-8"},
                start_new_session=True,  # A group of its own, to end it together with its children.
            )
        self.close = weakref.finalize(self, _put_away, self._process, self._control)

    def has_ended(self) -> bool:
        """Say whether it has to be started again. Its socket tells a moment earlier than its exit status."""
        look = select.poll()
        look.register(self._control, select.POLLHUP)
        return bool(look.poll(0)) or self._process.poll() is not None

    def ask(self, question: bytes, bounds: RenderBounds, extra_seconds: float = 0.0) -> bytes:
        """Return the reply; empty where it ended without one, took too long, or said more than it may."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, contextlib.suppress(OSError, ValueError):
            ours.settimeout(bounds.wall_seconds + _GRACE_SECONDS + extra_seconds)
            with theirs:
                socket.send_fds(self._control, [b"?"], [theirs.fileno()])
            ours.sendall(question)
            ours.shutdown(socket.SHUT_WR)
            return receive_all(ours, _MAX_BYTES_OF_CHARACTER * bounds.max_characters + _SPARE_BYTES)
        return b""


def _put_away(process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
    control.close()
    if process.poll() is None:  # Else its number may be another's by now; children end by their own clocks.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
