"""A hostile grammar costs its own request an error, and neither the loop nor its neighbours anything."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from teengined.core.errors import PackageError, QueueFull, QuotaExceeded, RequestError
from teengined.core.sampling import Grammar, GrammarKind
from teengined.service.grammar_check import CheckLimits, GrammarChecker
from tests.fakes.byte_package import write_byte_package

FINE = Grammar(kind=GrammarKind.REGEX, text="a+")
# Neither comes to an end by itself.
ENDLESS = Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type":"integer","multipleOf":123456789}')
SMALL = CheckLimits(cpu_seconds=1, num_processes=1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_package(tmp_path_factory.mktemp("store"))


def run(story: Callable[[GrammarChecker], Awaitable[None]], limits: CheckLimits = SMALL) -> None:
    async def with_checker() -> None:
        checker = GrammarChecker(limits)
        try:
            await story(checker)
        finally:
            await checker.close()

    asyncio.run(with_checker())


def check_one(grammar: Grammar, package_dir: Path, limits: CheckLimits = SMALL) -> None:
    run(lambda checker: checker.check(grammar, package_dir), limits)


def pids(checker: GrammarChecker) -> list[int]:
    return [process._process.pid for process in checker._idle]


def test_a_good_grammar_passes_and_its_process_is_used_again(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        await checker.check(FINE, package)
        first = pids(checker)
        await checker.check(FINE, package)

        assert pids(checker) == first
        assert len(first) == 1

    run(story)


def test_a_bad_grammar_is_refused_and_its_process_is_used_again(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        await checker.check(FINE, package)
        first = pids(checker)
        with pytest.raises(RequestError, match="unclosed group"):
            await checker.check(Grammar(kind=GrammarKind.REGEX, text="("), package)

        assert pids(checker) == first

    run(story)


def test_text_that_is_no_unicode_comes_back_as_an_error(package: Path) -> None:
    with pytest.raises(RequestError, match="no Unicode"):
        check_one(Grammar(kind=GrammarKind.CHOICE, choices=("fine", "\udfff")), package)


def test_a_grammar_without_end_is_refused_by_its_processor_time_and_the_next_one_passes(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        with pytest.raises(RequestError, match="more than 1 s of processor time") as refused:
            await checker.check(ENDLESS, package)
        assert "multipleOf" in refused.value.hint
        assert pids(checker) == []

        await checker.check(FINE, package)

    run(story)


def test_a_grammar_is_refused_by_the_clock_where_the_processor_is_busy(package: Path) -> None:
    with pytest.raises(RequestError, match=r"more than 0\.2 s"):
        check_one(ENDLESS, package, CheckLimits(cpu_seconds=60, wall_seconds=0.2))


def test_a_grammar_that_fills_the_memory_is_refused(package: Path) -> None:
    limits = CheckLimits(cpu_seconds=60, wall_seconds=60, memory_bytes=256 << 20)

    with pytest.raises(RequestError, match="refused"):
        check_one(ENDLESS, package, limits)


def test_the_loop_and_other_checks_go_on_beside_an_endless_one(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        endless = asyncio.create_task(checker.check(ENDLESS, package, "one"))
        for _ in range(3):
            await checker.check(FINE, package, "other")
        assert not endless.done()
        endless.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await endless

    run(story, CheckLimits(cpu_seconds=60, wall_seconds=100, num_processes=2))


def test_a_check_whose_request_is_cancelled_leaves_no_process_behind(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        await checker.check(FINE, package)
        (pid,) = pids(checker)
        endless = asyncio.create_task(checker.check(ENDLESS, package))
        await asyncio.sleep(0)  # the task's first turn: it takes the process and asks
        assert checker._idle == []
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless

        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await checker.check(FINE, package)

    run(story)


def test_more_checks_than_may_wait_are_refused_at_once(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        tasks = [asyncio.create_task(checker.check(FINE, package, f"owner {i}")) for i in range(6)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

        full = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
        assert len(full) == 3  # one runs, two wait
        assert full[0].retry_after_seconds
        assert [outcome for outcome in outcomes if outcome is not None and outcome not in full] == []
        assert checker._lines == {}

    run(story, CheckLimits(num_processes=1, max_waiting=2))


def test_one_owner_s_endless_grammars_wait_for_each_other_and_nobody_else_does(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        endless = [asyncio.create_task(checker.check(ENDLESS, package, "hostile")) for _ in range(7)]
        for _ in range(3):
            await checker.check(FINE, package, "other")
        done = [task for task in endless if task.done()]
        assert [type(task.exception()) for task in done] == [QuotaExceeded] * 2  # one is tried, four wait
        for task in endless:
            task.cancel()
        await asyncio.gather(*endless, return_exceptions=True)

        await checker.check(FINE, package, "hostile")
        assert checker._lines == {}

    run(story, CheckLimits(cpu_seconds=60, wall_seconds=100, num_processes=2))


def test_a_process_that_was_killed_while_idle_is_replaced(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        await checker.check(FINE, package)
        (process,) = checker._idle
        os.kill(process._process.pid, signal.SIGKILL)
        await process._process.wait()

        await checker.check(FINE, package)
        assert pids(checker) != [process._process.pid]

    run(story)


def test_a_process_is_replaced_after_so_many_checks(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        await checker.check(FINE, package)
        first = pids(checker)
        await checker.check(FINE, package)
        assert pids(checker) == []
        await checker.check(FINE, package)

        assert pids(checker) != first

    run(story, CheckLimits(num_processes=1, checks_per_process=2))


def test_a_package_without_tokenizer_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=tmp_path.name):
        check_one(FINE, tmp_path)


def test_memory_too_small_for_the_tokenizer_is_no_fault_of_the_grammar(package: Path) -> None:
    with pytest.raises(PackageError, match="within 20 MiB"):
        check_one(FINE, package, CheckLimits(memory_bytes=20 << 20))


def test_closing_ends_what_is_idle(package: Path) -> None:
    async def story(checker: GrammarChecker) -> None:
        await checker.check(FINE, package)
        (pid,) = pids(checker)
        await checker.close()

        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(story)
