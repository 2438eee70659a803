"""How calls to models ended, and what the client socket refused: counted where every call ends. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from teengined.core.errors import CapacityError, RequestError, error_class
from teengined.protocol.messages import Embed, Embedded, ErrorReply, Finished, Generate, Score, Scored
from teengined.service.metrics.histogram import ANSWER_SECONDS, Histogram

__all__ = ["CallMeter", "SocketMeter"]

_KINDS: Mapping[type, str] = {Generate: "generate", Score: "score", Embed: "embed"}


@dataclass(slots=True)
class CallMeter:
    """Calls to one model, or to none that is loaded."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """By kind and outcome: a reason, `done` where there is only one, or an error's code."""
    refused: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """By kind and code: those that could never succeed as they were sent, or for which there was no room."""
    seconds: Histogram = field(default_factory=lambda: Histogram(ANSWER_SECONDS))
    """From a call's arrival to its end, of those that did not fail."""

    def note(self, kind: str, final: Any, seconds: float) -> None:
        """Count a call by its final message."""
        match final:
            case ErrorReply():
                self.ended[kind, final.code] += 1
                if issubclass(error_class(final.code), (RequestError, CapacityError)):
                    self.refused[kind, final.code] += 1
            case Finished():
                self.ended[kind, final.reason.value] += 1
                self.seconds.observe(seconds)
            case Scored() | Embedded():
                self.ended[kind, "done"] += 1
                self.seconds.observe(seconds)
            case _:
                pass


@dataclass(slots=True)
class SocketMeter:
    """What the client socket saw. `meter_of` finds the meter of a loaded model."""

    meter_of: Callable[[str], CallMeter | None] = lambda _: None
    unknown: CallMeter = field(default_factory=CallMeter)
    """Of calls to a model that is not loaded: their names are anyone's, and no label may be."""
    refused_messages: Counter[str] = field(default_factory=Counter[str])
    """By code: what was no call, or one too many."""
    num_slow_readers: int = 0
    """Clients that were cut off because they did not read."""
    num_calls: int = 0
    """Under way."""

    def note_end(self, request: Any, final: Any, seconds: float) -> None:
        """Count a call that ended; one that asks nothing of a model is not counted."""
        kind = _KINDS.get(cast("type[object]", type(request)))
        if kind is not None:
            (self.meter_of(request.model) or self.unknown).note(kind, final, seconds)

    def note_refused(self, code: str) -> None:
        """Count a message that did not become a call."""
        self.refused_messages[code] += 1
