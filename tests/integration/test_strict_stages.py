"""Strict numerics through opened stages: scores of a prompt are equal to the bit, cut or whole, kept or streamed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.local_pipeline import LocalPipeline
from teengined.core.request import Goal
from tests.fakes.local_stages import LocalSequence, build_package, open_pipeline

PROMPT = [int(token) for token in torch.randint(3, 300, (70,), generator=torch.Generator().manual_seed(5))]
BLOCKS = (8, 1, 19, 4, 6)
OTHERS = tuple(LocalSequence(10 + i, PROMPT[i : 20 + 7 * i]) for i in range(3))


def scores(pipeline: LocalPipeline, cuts: Sequence[int], others: Sequence[LocalSequence] = ()) -> list[float]:
    """Score the prompt in chunks that end at `cuts`, others running beside the first."""
    sequence = LocalSequence(1, PROMPT, goal=Goal.SCORE)
    found: list[float] = []
    start = 0
    for end in cuts:
        parts, opened = (sequence.part(start, end, () if start else BLOCKS),), ()
        if start == 0:
            beside = tuple(other.part(0, 15 + i, (20 + i, 12 + i)) for i, other in enumerate(others))
            parts, opened = (*beside, *parts), (sequence.opened(), *(other.opened() for other in others))
        done = pipeline.run(parts, opened=opened)
        found += [each.logprob for told in done.prompt_logprobs for each in told.logprobs]
        start = end
    pipeline.run((), closed=(1, *(other.id for other in others)))
    return found


def scores_after_a_prefix(pipeline: LocalPipeline) -> list[float]:
    """Score what follows the first two blocks, which another sequence has filled."""
    filled = LocalSequence(2, PROMPT[:33], goal=Goal.EMBED, pooling="last")
    sequence = LocalSequence(1, PROMPT, goal=Goal.SCORE, score_start=33)
    pipeline.run((filled.part(0, 33, (8, 1, 22)),), opened=(filled.opened(),))
    done = pipeline.run((sequence.part(32, 70, (8, 1, 2, 3, 5)),), opened=(sequence.opened(),), closed=(2,))
    pipeline.run((), closed=(1,))
    return [each.logprob for told in done.prompt_logprobs for each in told.logprobs]


def all_ways(package_dir: Path, numerics: str) -> tuple[list[float], list[list[float]]]:
    """Return the scores of the prompt run whole, and those of other ways."""
    with open_pipeline(package_dir, numerics=numerics) as pipeline:
        expected = scores(pipeline, [70])
    with open_pipeline(package_dir, numerics=numerics, num_stages=2, is_streamed=True) as pipeline:
        found = [
            scores(pipeline, [70]),
            scores(pipeline, range(1, 71)),
            scores(pipeline, [16, 17, 40, 64, 70], OTHERS),
            scores_after_a_prefix(pipeline),
        ]
    return expected, found


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gemma2", "deepseek_v3"])
def test_scores_are_the_same_to_the_last_bit(architecture: str, tmp_path: Path) -> None:
    _, package_dir = build_package(architecture, tmp_path, precision="bf16", dtype=torch.bfloat16)

    expected, found = all_ways(package_dir, "strict")

    assert [len(each) for each in found] == [69, 69, 69, 37]
    assert [each == expected[-len(each) :] for each in found] == [True] * 4


def test_with_default_numerics_they_are_not(tmp_path: Path) -> None:
    _, package_dir = build_package("llama", tmp_path)

    expected, found = all_ways(package_dir, "default")

    assert [each == expected[-len(each) :] for each in found] != [True] * 4
    for each in found:
        assert each == pytest.approx(expected[-len(each) :], abs=1e-4)
