"""Whether a grammar can be followed, found out before its request is admitted. Imports neither torch nor llguidance.

Compiling a grammar is native code that no one can interrupt, and some small grammars never come to an end or fill the
memory. So each is tried in a process of its own kind, bounded by the kernel in time and memory. A process that answered
is used again, so that an ordinary grammar costs some milliseconds; one that did not is ended, and costs nobody else.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from teengined.core.errors import InternalError, PackageError, QueueFull, QuotaExceeded, RequestError, error_class
from teengined.core.records import to_mapping
from teengined.core.sampling import Grammar

__all__ = ["CheckLimits", "GrammarChecker"]

_HINT = "make it smaller: fewer alternatives, repetitions and properties, no multipleOf of a large number"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLimits:
    """What checking may cost."""

    cpu_seconds: float = 0.5
    """Processor time of one grammar, rounded up by less than a second. Large real ones take 0.2 s."""
    wall_seconds: float = 5.0
    """The same by the clock, on a machine whose processors are busy."""
    load_seconds: float = 60.0
    """For reading a package's tokenizer, which takes some seconds at most on a machine that is not overloaded."""
    memory_bytes: int = 2 << 30
    """Address space of one process: the largest tokenizers take a quarter, and a grammar that takes the rest is bad."""
    num_processes: int = 2
    """Checks in flight: one that takes its whole time leaves the way free for others."""
    max_waiting: int = 64
    """Checks that wait for a process. At some milliseconds each that is less than a second."""
    max_owner_waiting: int = 4
    """Of one owner, behind the one that is tried: who sends grammars that take their whole time waits for itself."""
    checks_per_process: int = 500
    """A process is replaced then, so that what a library leaks stays small."""


@dataclass(slots=True)
class _Line:
    """The checks of one owner."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_checks: int = 0
    """Waiting, or tried."""


class GrammarChecker:
    """Checks grammars on the event loop, in processes that it starts when they are needed."""

    def __init__(self, limits: CheckLimits | None = None) -> None:
        """Nothing is started before the first check."""
        self._limits = limits or CheckLimits()
        self._free = asyncio.Semaphore(self._limits.num_processes)
        self._idle: list[_CheckProcess] = []
        self._num_waiting = 0
        self._lines: dict[str, _Line] = {}
        """By owner; of those that have a check under way or waiting."""

    async def check(self, grammar: Grammar, package_dir: Path, owner: str = "") -> None:
        """Return if a worker can follow `grammar` with the package's tokenizer.

        The grammars of one owner are tried one after another, so that the other processes are free for others.

        Raises:
            RequestError: what is wrong with it, and where; or it takes more time or memory than is allowed.
            PackageError: the package's tokenizer cannot be read.
            QuotaExceeded: too many checks of this owner wait already.
            QueueFull: too many checks of all owners do.
        """
        line = self._lines.get(owner) or _Line()
        if line.num_checks > self._limits.max_owner_waiting:
            raise QuotaExceeded(
                f"{self._limits.max_owner_waiting} of your grammars wait to be checked", retry_after_seconds=1.0
            )
        if self._num_waiting >= self._limits.max_waiting:
            raise QueueFull(f"{self._num_waiting} grammars wait to be checked", retry_after_seconds=1.0)
        self._lines[owner] = line
        line.num_checks += 1
        try:
            await self._check_in_turn(line, grammar, package_dir)
        finally:
            line.num_checks -= 1
            if not line.num_checks:
                del self._lines[owner]

    async def close(self) -> None:
        """End the processes that wait for work. Checks under way are ended by cancelling them."""
        while self._idle:
            await self._idle.pop().end()

    async def _check_in_turn(self, line: "_Line", grammar: Grammar, package_dir: Path) -> None:
        async with contextlib.AsyncExitStack() as held:
            self._num_waiting += 1
            try:
                await held.enter_async_context(line.turn)
                await held.enter_async_context(self._free)
            finally:
                self._num_waiting -= 1
            await self._check(grammar, package_dir)

    async def _check(self, grammar: Grammar, package_dir: Path) -> None:
        process = await self._take()
        try:
            await process.check(grammar, package_dir)
        finally:
            if process.is_usable:
                self._idle.append(process)
            else:
                await process.end()

    async def _take(self) -> "_CheckProcess":
        while self._idle:
            process = self._idle.pop()
            if process.is_usable:
                return process
            await process.end()
        return await _CheckProcess.start(self._limits)


class _CheckProcess:
    """One `grammar_process`, which checks one grammar at a time."""

    def __init__(self, process: Process, limits: CheckLimits) -> None:
        self._process = process
        self._limits = limits
        self._num_checks = 0
        self._is_asked = False

    @classmethod
    async def start(cls, limits: CheckLimits) -> "_CheckProcess":
        bounds = (limits.memory_bytes, limits.cpu_seconds, os.getpid())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "teengined.service.grammar_process", *map(str, bounds)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,  # a panic of the library is told here, and a client could fill the log with them
            start_new_session=True,
            # One thread: the library's threads would only take address space.
            env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return cls(process, limits)

    @property
    def is_usable(self) -> bool:
        """Whether it has answered all it was asked, and may be asked again."""
        is_fresh = self._num_checks < self._limits.checks_per_process
        return self._process.returncode is None and not self._is_asked and is_fresh

    async def check(self, grammar: Grammar, package_dir: Path) -> None:
        self._num_checks += 1
        self._is_asked = True
        request = {"package_dir": str(package_dir), "grammar": to_mapping(grammar)}
        answer = await self._ask(request, package_dir.name)
        if answer["state"] == "ready":
            answer = await self._verdict(grammar)
        self._is_asked = False
        if answer["state"] == "refused":
            raise error_class(answer["code"])(answer["message"], hint=answer["hint"])

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _ask(self, request: Mapping[str, object], package: str) -> Mapping[str, str]:
        """Send a request and return the first answer, which comes when the tokenizer is there."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(self._limits.load_seconds):
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                with contextlib.suppress(ConnectionError):  # it has ended, which reading tells
                    await self._process.stdin.drain()
                answer = await self._answer()
        except TimeoutError as error:
            seconds = self._limits.load_seconds
            raise InternalError(
                f"{package}: reading the tokenizer for a grammar took more than {seconds:g} s"
            ) from error
        if answer is None:
            size = self._limits.memory_bytes // _MIB
            raise PackageError(f"{package}: the tokenizer cannot be read for a grammar within {size} MiB of memory")
        return answer

    async def _verdict(self, grammar: Grammar) -> Mapping[str, str]:
        what = f"the grammar of kind {grammar.kind.value} is refused: to prepare it takes more than"
        try:
            async with asyncio.timeout(self._limits.wall_seconds):
                answer = await self._answer()
        except TimeoutError as error:
            raise RequestError(f"{what} {self._limits.wall_seconds:g} s", hint=_HINT) from error
        if answer is not None:
            return answer
        if await self._process.wait() == -signal.SIGXCPU:
            raise RequestError(f"{what} {self._limits.cpu_seconds:g} s of processor time", hint=_HINT)
        raise RequestError(f"{what} {self._limits.memory_bytes // _MIB} MiB of memory", hint=_HINT)

    async def _answer(self) -> Mapping[str, str] | None:
        """Return the next line; nothing if the process has ended."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None
