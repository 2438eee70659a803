"""The process that renders one template: it compiles it, then forks a child for each rendering.

A template may loop for ever inside one call of C code, where nothing in the same process can stop it, and may take all
memory that it is given. A child of its own ends by the kernel's hand when its processor time is spent, cannot take more
memory than its limit, and leaves nothing behind for the next rendering. Forking a small process of one thread takes
about a millisecond; starting an interpreter would take a hundred.

Standard input is a socket. Each message on it is one byte and a descriptor: the other end of a stream that carries one
question, up to its end, and the reply. The first question is the template, every other one a rendering. The end of
standard input ends the process.
"""

import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import jinja2

from teengined.core.records import from_mapping
from teengined.service.rendering.exchange import FAILED, RENDERED, RenderBounds, receive_all
from teengined.service.rendering.sandbox import CompiledTemplate, TooLong

__all__ = ["main"]

_MAX_PROBLEM_CHARACTERS = 300
# The daemon sends no larger one; the largest published ones have some 20 kB.
_MAX_TEMPLATE_BYTES = 16 << 20
# Imported late by jinja and its filters, which a child that may open nothing could not do.
_LATE_MODULES = ("jinja2.debug", "_strptime", "encodings.idna", "unicodedata")


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel forgets children by itself.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for name in _LATE_MODULES:
        importlib.import_module(name)
    _become_the_first_to_go()
    control = socket.socket(fileno=sys.stdin.fileno())
    opening = _next_stream(control)
    if opening is None:
        return
    with opening:
        served = _compile(opening)
    if served is None:
        return
    gc.freeze()  # What is here stays here: no child's collector has to touch it, which would copy it.
    while (stream := _next_stream(control)) is not None:
        with stream:
            if os.fork() == 0:
                _answer_and_exit(control, stream, served)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    template: CompiledTemplate
    bounds: RenderBounds


def _become_the_first_to_go() -> None:
    """Where the host runs out of memory, this is what it should lose: the daemon starts another one."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:  # noqa: PTH123 - no path to import
            score.write("1000")
    except OSError:
        pass  # Not every sandbox around the daemon lets it.


def _next_stream(control: socket.socket) -> socket.socket | None:
    content, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    return socket.socket(fileno=descriptors[0]) if content and descriptors else None


def _compile(stream: socket.socket) -> _Served | None:
    """Compile what the daemon sends, within the bounds, and say how it went. None: there is nothing to serve."""
    question = json.loads(receive_all(stream, _MAX_TEMPLATE_BYTES))
    bounds = from_mapping(RenderBounds, question["bounds"])
    _bound_memory(bounds)
    _bound_time(bounds.cpu_seconds, bounds.wall_seconds)
    compiled: list[CompiledTemplate] = []

    def work() -> str:
        compiled.append(CompiledTemplate(question["source"], question["special_tokens"]))
        return ""

    stream.sendall(_reply(work, bounds))
    _bound_time(0, 0)
    return _Served(template=compiled[0], bounds=bounds) if compiled else None


def _answer_and_exit(control: socket.socket, stream: socket.socket, served: _Served) -> None:
    """Be the child: render, reply, and end without running anything that belongs to the parent."""
    bounds = served.bounds
    try:
        _bound_time(bounds.cpu_seconds, bounds.wall_seconds)
        control.close()
        for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(what, (0, 0))

        def work() -> str:
            question = json.loads(receive_all(stream, bounds.max_question_bytes))
            now = datetime.fromisoformat(question["now"])
            return served.template.render(question["variables"], now, bounds.max_characters)

        stream.sendall(_reply(work, bounds))
    finally:
        os._exit(0)


def _bound_memory(bounds: RenderBounds) -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - as above
        now_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    limit_bytes = now_bytes + bounds.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def _bound_time(cpu_seconds: float, wall_seconds: float) -> None:
    """Let the kernel end this process after so much time; 0: not any more. Children do not inherit it."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def _reply(work: Callable[[], str], bounds: RenderBounds) -> bytes:
    """Return the reply to a question; whatever `work` raises becomes a clause about the template."""
    try:
        return RENDERED + work().encode("utf-8")
    except TooLong:
        problem = f"writes more than {bounds.max_characters} characters"
    except MemoryError:
        problem = f"takes more than {bounds.memory_bytes >> 20} MiB of memory"
    except RecursionError:
        problem = "calls itself too often, or is nested too deeply"
    except UnicodeEncodeError:
        problem = "writes half of a surrogate pair, which is no text"
    except jinja2.TemplateSyntaxError as error:
        problem = f"is not valid: {_said(error)} (line {error.lineno})"
    except jinja2.TemplateError as error:
        problem = f"refuses these messages: {_said(error)}"
    except Exception as error:  # noqa: BLE001 - a template may raise anything, and whoever asked wants to know
        problem = f"refuses these messages: {type(error).__name__}: {_said(error)}"
    return FAILED + problem.encode("utf-8", errors="replace")


def _said(error: Exception) -> str:
    try:
        return f"{error!s:.{_MAX_PROBLEM_CHARACTERS}}"
    except Exception:  # noqa: BLE001 - an error about something that cannot even be printed
        return "an error without words"


if __name__ == "__main__":
    main()
