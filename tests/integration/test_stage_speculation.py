"""Guesses through opened stages: to the last bit what they are without, where numerics are strict."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.local_pipeline import LocalPipeline
from teengined.core.sampling import SamplingParams
from teengined.protocol.worker_messages import SampledToken
from tests.fakes.local_stages import LocalSequence, build_package, open_pipeline

PROMPT = [int(token) for token in torch.randint(3, 300, (19,), generator=torch.Generator().manual_seed(5))]
BESIDE = LocalSequence(7, PROMPT[:5])
NUM_TOKENS = 24
BLOCKS = (8, 1, 19, 4)
SAMPLING = (
    SamplingParams(logprobs=2, max_tokens=NUM_TOKENS),
    SamplingParams(logprobs=2, max_tokens=NUM_TOKENS, temperature=1.0, seed=3, repetition_penalty=1.2),
)


def plain(pipeline: LocalPipeline, sequence: LocalSequence) -> list[SampledToken]:
    """Draw one token a step."""
    done = pipeline.run((sequence.part(0, len(PROMPT), BLOCKS),), opened=(sequence.opened(),))
    found = list(done.tokens)
    while len(found) < NUM_TOKENS:
        found += pipeline.run((sequence.decode(found[-1].token_id, len(PROMPT) + len(found) - 1),)).tokens
    pipeline.run((), closed=(sequence.id,))
    return found


def guessed(
    pipeline: LocalPipeline, sequence: LocalSequence, answer: Sequence[SampledToken], rng: random.Random
) -> list[SampledToken]:
    """Draw the same with guesses, four of five right, beside another sequence."""
    opened = (sequence.opened(), BESIDE.opened())
    done = pipeline.run((sequence.part(0, len(PROMPT), BLOCKS), BESIDE.part(0, 5, (20, 21, 22, 23))), opened=opened)
    found = [token for token in done.tokens if token.sequence_id == sequence.id]
    num_steps = 0
    while len(found) < NUM_TOKENS:
        rest = [token.token_id for token in answer[len(found) : -1]]
        guess = [token if rng.random() < 0.8 else token + 1 for token in rest[: rng.randint(0, 6)]]
        part = sequence.decode(found[-1].token_id, len(PROMPT) + len(found) - 1)
        part = replace(part, token_ids=(*part.token_ids, *guess), num_drafted=len(guess))
        done = pipeline.run((BESIDE.decode(9, 5 + num_steps), part))
        found += [token for token in done.tokens if token.sequence_id == sequence.id]
        num_steps += 1
    pipeline.run((), closed=(sequence.id, BESIDE.id))
    return found


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "sampled"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "gemma2", "deepseek_v3"])
def test_answers_are_the_same_to_the_last_bit(
    architecture: str, sampling: SamplingParams, tmp_path: Path, seed: int
) -> None:
    _, package_dir = build_package(architecture, tmp_path, precision="bf16", dtype=torch.bfloat16)
    sequence, rng = LocalSequence(1, PROMPT, sampling=sampling), random.Random(seed)
    opened = replace(sequence.opened(), history=tuple(PROMPT))
    sequence.opened = lambda: opened  # type: ignore[method-assign] - with the history that penalties want

    with open_pipeline(package_dir, numerics="strict", num_stages=2, is_streamed=True) as pipeline:
        answer = plain(pipeline, sequence)
        found = guessed(pipeline, sequence, answer, rng)

    assert found == answer


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_wrong_guesses_leave_no_trace_with_default_numerics(kv_dtype: str, tmp_path: Path, seed: int) -> None:
    _, package_dir = build_package("llama", tmp_path)
    sequence = LocalSequence(1, PROMPT, sampling=SAMPLING[0])

    with open_pipeline(package_dir, kv_dtype=kv_dtype) as pipeline:
        answer = plain(pipeline, sequence)
        found = guessed(pipeline, sequence, answer, random.Random(seed))

    assert [token.token_id for token in found] == [token.token_id for token in answer]
    for one, other in zip(found, answer, strict=True):
        assert one.logprobs is not None
        assert other.logprobs is not None
        assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-3)
