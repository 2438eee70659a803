"""KV that leaves the device and comes back is the same to the bit, wherever it was; what was lost is computed again."""

import os
import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scheduled_pipeline import ScheduledPipeline, Told
from teengined.core.errors import WorkerLost
from teengined.core.sampling import SamplingParams
from teengined.protocol.loading_messages import KvTiers
from teengined.scheduler.events import PipelineLost, PipelineReady
from teengined.scheduler.limits import SchedulerLimits, SpoolLimits
from tests.fakes.local_stages import build_package, open_pipeline

PROMPT = tuple(int(token) for token in torch.randint(3, 300, (45,), generator=torch.Generator().manual_seed(7)))
OTHER = tuple(reversed(PROMPT))
SAMPLING = SamplingParams(max_tokens=40, logprobs=2, temperature=0.8, seed=3, ignore_eos=True)
NUM_BLOCKS = 14


@contextmanager
def scheduled(
    package_dir: Path, spool: SpoolLimits, *, spool_dir: Path | None = None, num_stages: int = 1, **options
) -> Generator[ScheduledPipeline]:
    limits = SchedulerLimits(
        max_running=4,
        max_waiting=8,
        max_waiting_tokens=1000,
        max_owner_waiting=8,
        max_owner_waiting_tokens=1000,
        max_step_tokens=64,
        max_logit_rows=8,
        num_blocks=options.pop("num_blocks", NUM_BLOCKS),
        block_tokens=16,
        prefix_cache=options.pop("prefix_cache", True),
        spool=spool,
    )
    with open_pipeline(
        package_dir,
        num_stages=num_stages,
        num_blocks=limits.num_blocks,
        num_host_slots=spool.num_host_slots,
        num_disk_slots=spool.num_disk_slots,
        spool_dir=str(spool_dir or ""),
        **options,
    ) as pipeline:
        yield ScheduledPipeline(pipeline, limits, num_stages, measures=False)


class Restarted:
    """A scheduler whose stages are lost and opened again; its spool files outlive them."""

    def __init__(self, package_dir: Path, spool_dir: Path, **interval: Any) -> None:
        spool = SpoolLimits(num_host_slots=8, num_disk_slots=60, **interval)
        self.first = scheduled(package_dir, spool, numerics="strict", spool_dir=spool_dir)
        self.second = scheduled(package_dir, spool, numerics="strict", spool_dir=spool_dir)

    def tokens(self, *, emitted_before: int) -> tuple[list[int], KvTiers, int]:
        """Return the answer to a request that is sent again after the stages were lost in its midst."""
        with self.first as before:
            lost = before.submit(PROMPT, SAMPLING)
            before.run_until_emitted(lost, emitted_before)
            before.finish_moves()
            before.handle(PipelineLost(error=WorkerLost("killed")))
        with self.second as after:
            after.scheduler = before.scheduler
            after.handle(PipelineReady())
            sequence_id = after.submit(PROMPT, SAMPLING, first_id=100)
            tokens = after.finish(sequence_id)
            end = after.told[sequence_id].end
            assert end is not None
            return tokens, after.scheduler.tiers, end.cached_tokens


def told_of(pipeline: ScheduledPipeline, *, preempt_after: int | None = None) -> Told:
    """Run the sequence; `preempt_after` so many tokens its blocks are taken, and overwritten by another's."""
    sequence_id = pipeline.submit(PROMPT, SAMPLING)
    if preempt_after is not None:
        pipeline.run_until_emitted(sequence_id, preempt_after)
        preempt(pipeline, sequence_id)
        between(pipeline)
    pipeline.finish(sequence_id)
    return pipeline.told[sequence_id]


def says_the_same(told: Told, other: Told, *, numerics: str = "default") -> bool:
    """Compare tokens and log-probabilities: to the bit where that is promised.

    Elsewhere libraries add up by where operands happen to lie in memory, and the last bits differ now and then.
    """
    if numerics == "strict":
        return told.tokens == other.tokens
    pairs = list(zip(told.tokens, other.tokens, strict=True))
    close = [
        abs(one.logprobs.logprob - two.logprobs.logprob) < 1e-3 for one, two in pairs if one.logprobs and two.logprobs
    ]
    return len(close) == len(pairs) and all(close) and all(one.token_id == two.token_id for one, two in pairs)


def preempt(pipeline: ScheduledPipeline, sequence_id: int) -> None:
    """Take its blocks as another's growth would."""
    state = pipeline.scheduler._state
    state.preempt(state.sequences[sequence_id], 0.0)


def between(pipeline: ScheduledPipeline) -> None:
    """Let others use every block while the first waits."""
    waiting = pipeline.scheduler._state.waiting
    held = dict(waiting)
    waiting.clear()
    for first in range(5, 11):
        pipeline.finish(pipeline.submit((first, *OTHER), SAMPLING))
        pipeline.finish_moves()  # On a slow disk what is not written yet would give way, as it may.
    waiting.update(held)


@pytest.fixture(scope="module", params=["llama", "gemma2", "deepseek_v3"])
def package_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_package(request.param, tmp_path_factory.mktemp("package"))[1]


@pytest.mark.parametrize("numerics", ["default", "strict"])
@pytest.mark.parametrize("num_disk_slots", [0, 60])
def test_sequence_goes_on_as_if_its_blocks_had_never_been_taken(
    package_dir: Path, numerics: str, num_disk_slots: int, tmp_path: Path
) -> None:
    spool = SpoolLimits(num_host_slots=8 if num_disk_slots else 40, num_disk_slots=num_disk_slots)
    with scheduled(package_dir, SpoolLimits(), numerics=numerics) as pipeline:
        undisturbed = told_of(pipeline)
    with scheduled(package_dir, spool, numerics=numerics, spool_dir=tmp_path) as pipeline:
        disturbed = told_of(pipeline, preempt_after=24)
        tiers = pipeline.scheduler.tiers

    assert (tiers.num_restored, tiers.num_recomputed_tokens, tiers.num_failed) == (5, 0, 0)
    assert bool(tiers.num_fetched) == bool(num_disk_slots)
    assert says_the_same(disturbed, undisturbed, numerics=numerics)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_every_stage_brings_back_its_own_part(package_dir: Path, kv_dtype: str, tmp_path: Path) -> None:
    spool = SpoolLimits(num_host_slots=8, num_disk_slots=60, max_restored_blocks=2)
    with scheduled(package_dir, SpoolLimits(), num_stages=2, kv_dtype=kv_dtype) as pipeline:
        undisturbed = told_of(pipeline)
    with scheduled(package_dir, spool, num_stages=2, kv_dtype=kv_dtype, spool_dir=tmp_path) as pipeline:
        disturbed = told_of(pipeline, preempt_after=24)
        tiers = pipeline.scheduler.tiers

    assert tiers.num_recomputed_tokens == 0
    assert tiers.num_fetched > 0
    assert says_the_same(disturbed, undisturbed)


def test_without_a_prefix_cache_a_sequence_keeps_what_is_its_own(package_dir: Path) -> None:
    with scheduled(package_dir, SpoolLimits(), prefix_cache=False) as pipeline:
        undisturbed = told_of(pipeline)
    with scheduled(package_dir, SpoolLimits(num_host_slots=40), prefix_cache=False) as pipeline:
        disturbed = told_of(pipeline, preempt_after=24)
        tiers = pipeline.scheduler.tiers

    assert says_the_same(disturbed, undisturbed)
    assert (tiers.num_restored, tiers.num_recomputed_tokens) == (5, 0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_package("llama", tmp_path_factory.mktemp("llama"))[1]


DISK = SpoolLimits(num_host_slots=8, num_disk_slots=60)


def test_altered_spool_is_noticed_and_computed_again(llama: Path, tmp_path: Path) -> None:
    with scheduled(llama, SpoolLimits(), numerics="strict") as pipeline:
        undisturbed = told_of(pipeline)
    with scheduled(llama, DISK, numerics="strict", spool_dir=tmp_path) as pipeline:
        sequence_id = pipeline.submit(PROMPT, SAMPLING)
        pipeline.run_until_emitted(sequence_id, 24)
        preempt(pipeline, sequence_id)
        between(pipeline)
        path = tmp_path / "stage0"
        assert path.stat().st_mode & 0o777 == 0o600
        content = bytearray(path.read_bytes())
        for offset in range(0, len(content), 512):
            content[offset] ^= 1
        path.write_bytes(content)
        tokens = pipeline.finish(sequence_id)
        tiers, problem = pipeline.scheduler.tiers, pipeline.problem

    assert tokens == [token.token_id for token in undisturbed.tokens]
    assert tiers.num_failed > 0
    assert problem == "a slot of the spool file was altered"
    assert tiers.num_recomputed_tokens > 0


def test_full_disk_costs_what_does_not_fit_and_nothing_else(llama: Path, tmp_path: Path) -> None:
    with scheduled(llama, SpoolLimits(), numerics="strict") as pipeline:
        undisturbed = told_of(pipeline)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * os.sysconf("SC_PAGE_SIZE"), hard))
    try:
        with scheduled(llama, DISK, numerics="strict", spool_dir=tmp_path) as pipeline:
            disturbed = told_of(pipeline, preempt_after=24)
            tiers, problem = pipeline.scheduler.tiers, pipeline.problem
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [token.token_id for token in disturbed.tokens] == [token.token_id for token in undisturbed.tokens]
    assert tiers.num_failed > 0
    assert "writing to the spool failed" in problem
    assert tiers.num_dropped > 0


@pytest.mark.parametrize("interval", [{"checkpoint_tokens": 16}, {"checkpoint_seconds": 1e-9}], ids=str)
def test_checkpoint_outlives_the_stages_that_wrote_it(
    llama: Path, tmp_path: Path, interval: dict[str, int | float]
) -> None:
    with scheduled(llama, SpoolLimits(), numerics="strict") as pipeline:
        undisturbed = told_of(pipeline)

    tokens, tiers, cached_tokens = Restarted(llama, tmp_path, **interval).tokens(emitted_before=8)

    assert tokens == [token.token_id for token in undisturbed.tokens]
    assert cached_tokens == 32
    assert (tiers.num_fetched, tiers.num_failed) == (2, 0)


def test_stage_without_a_directory_for_its_file_runs_without_it(llama: Path, tmp_path: Path) -> None:
    with scheduled(llama, DISK, spool_dir=tmp_path / "absent") as pipeline:
        told_of(pipeline, preempt_after=24)

        assert "cannot open the spool file" in pipeline.problem
        assert pipeline.scheduler.tiers.num_disk_blocks == 0


def test_contention_preempts_and_nobodys_text_changes(llama: Path, tmp_path: Path) -> None:
    prompts = [(salt, *PROMPT) for salt in range(5, 9)]
    with scheduled(llama, SpoolLimits(), numerics="strict", num_blocks=40) as pipeline:
        alone = [pipeline.finish(pipeline.submit(prompt, SAMPLING)) for prompt in prompts]
    with scheduled(llama, DISK, numerics="strict", num_blocks=9, spool_dir=tmp_path) as pipeline:
        ids = [pipeline.submit(prompt, SAMPLING) for prompt in prompts]
        together = [pipeline.finish(sequence_id) for sequence_id in ids]
        num_preempted, tiers = pipeline.scheduler.num_preempted, pipeline.scheduler.tiers

    assert together == alone
    assert num_preempted > 0
    assert tiers.num_restored > 0
