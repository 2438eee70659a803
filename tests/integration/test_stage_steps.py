"""Opened stages, step by step: chunks beside decodes, shared and copied blocks, prompt scores, pooled vectors."""

import queue
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.local_pipeline import LocalPipeline
from teengined.core.errors import InternalError
from teengined.core.request import Goal
from teengined.core.sampling import SamplingParams
from teengined.engine import grammar_masks, stage
from teengined.modelpack.manifest import read_manifest
from teengined.models.skeleton import Skeleton
from teengined.models.stage_model import Head
from teengined.native.library import kernel_library
from teengined.protocol.worker_messages import BlockCopy, PooledVector, StepDone
from tests.fakes.local_stages import LocalSequence, build_package, open_pipeline

PROMPT = [int(token) for token in torch.randint(3, 300, (40,), generator=torch.Generator().manual_seed(5))]
OTHER = [int(token) for token in torch.randint(3, 300, (21,), generator=torch.Generator().manual_seed(6))]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_package("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(paths: tuple[Path, Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(paths[0], dtype=torch.float32).eval()


def expected_tokens(model: Any, prompt: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def token_of(done: StepDone, sequence: LocalSequence) -> int:
    return next(token.token_id for token in done.tokens if token.sequence_id == sequence.id)


def continued(pipeline: LocalPipeline, sequence: LocalSequence, first: int, num_tokens: int = NUM_TOKENS) -> list[int]:
    """Decode alone after the first token was drawn, in blocks that the sequence has."""
    tokens = [first]
    while len(tokens) < num_tokens:
        part = sequence.decode(tokens[-1], len(sequence.prompt) + len(tokens) - 1)
        tokens.append(token_of(pipeline.run((part,)), sequence))
    return tokens


@pytest.mark.parametrize("is_streamed", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("num_stages", [1, 2])
def test_chunks_of_one_run_beside_decodes_of_another(
    paths: tuple[Path, Path], model: Any, num_stages: int, is_streamed: bool
) -> None:
    one, two = LocalSequence(1, OTHER), LocalSequence(2, PROMPT)
    with open_pipeline(paths[1], num_stages=num_stages, is_streamed=is_streamed) as pipeline:
        done = pipeline.run((one.part(0, 21, (9, 2)),), opened=(one.opened(),))
        ours, position, theirs = [token_of(done, one)], 21, []
        for start, end, blocks in ((0, 13, (17,)), (13, 30, (4,)), (30, 39, (11,)), (39, 40, (23,))):
            parts = (one.decode(ours[-1], position, (12,) if position == 32 else ()), two.part(start, end, blocks))
            done = pipeline.run(parts, opened=(two.opened(),) if start == 0 else ())
            ours.append(token_of(done, one))
            theirs = [token.token_id for token in done.tokens if token.sequence_id == 2]
            position += 1
            assert len(theirs) == (end == 40)
        assert ours == expected_tokens(model, OTHER, 5)
        assert continued(pipeline, two, theirs[0]) == expected_tokens(model, PROMPT)


def test_steps_run_in_order_with_several_under_way(paths: tuple[Path, Path], model: Any) -> None:
    one, two = LocalSequence(1, OTHER), LocalSequence(2, PROMPT)
    with open_pipeline(paths[1], num_stages=2) as pipeline:
        steps = [
            pipeline.send((one.part(0, 21, (0, 1, 2)),), opened=(one.opened(),)),
            pipeline.send((two.part(0, 25, (3, 4, 5, 6)),), opened=(two.opened(),)),
            pipeline.send((two.part(25, 40),)),
        ]
        answers = [pipeline.receive(step) for step in steps]
        first = [token_of(answers[0], one), token_of(answers[2], two)]
        steps = [pipeline.send((s.decode(t, len(s.prompt)),)) for s, t in zip((one, two), first, strict=True)]
        second = [token_of(pipeline.receive(step), s) for step, s in zip(steps, (one, two), strict=True)]

    assert [first[0], second[0]] == expected_tokens(model, OTHER, 2)
    assert [first[1], second[1]] == expected_tokens(model, PROMPT, 2)


def test_a_prefix_is_shared_and_its_last_block_copied_before_it_is_written(
    paths: tuple[Path, Path], model: Any
) -> None:
    one, two = LocalSequence(1, PROMPT), LocalSequence(2, [*PROMPT[:36], *OTHER])
    with open_pipeline(paths[1]) as pipeline:
        first = token_of(pipeline.run((one.part(0, 40, (7, 3, 12)),), opened=(one.opened(),)), one)
        # Two whole blocks shared, and four tokens of the third, which both go on to write.
        copy = BlockCopy(sequence_id=2, index=2, source=12, target=20)
        parts = (one.decode(first, 40), two.part(36, 57, (7, 3, 12, 21, 22)))
        done = pipeline.run(parts, opened=(two.opened(),), copies=(copy,))
        ours = [first, *continued(pipeline, LocalSequence(1, [*PROMPT, first]), token_of(done, one), 7)]
        theirs = continued(pipeline, two, token_of(done, two))

    assert ours == expected_tokens(model, PROMPT, 8)
    assert theirs == expected_tokens(model, [*two.prompt])


def test_blocks_of_a_closed_sequence_are_another_s_in_the_same_step(paths: tuple[Path, Path], model: Any) -> None:
    one, two, three = LocalSequence(1, PROMPT), LocalSequence(2, OTHER), LocalSequence(3, [*PROMPT[:20], 9])
    with open_pipeline(paths[1]) as pipeline:
        pipeline.run((one.part(0, 40, (7, 3, 12)),), opened=(one.opened(),))
        # Block 3 is copied for one and cleared for another's use, in one step.
        copy = BlockCopy(sequence_id=3, index=1, source=3, target=5)
        parts = (two.part(0, 21, (3, 12, 8)), three.part(20, 21, (7, 3, 6)))
        done = pipeline.run(parts, closed=(1,), opened=(two.opened(), three.opened()), copies=(copy,))
        ours = continued(pipeline, two, token_of(done, two))
        theirs = continued(pipeline, three, token_of(done, three))

    assert ours == expected_tokens(model, OTHER)
    assert theirs == expected_tokens(model, [*three.prompt])


def test_a_failed_step_leaves_the_stage_able_to_run_later_ones(paths: tuple[Path, Path], model: Any) -> None:
    one, unknown = LocalSequence(1, OTHER), LocalSequence(8, PROMPT)
    with open_pipeline(paths[1], num_stages=2) as pipeline:
        with pytest.raises(InternalError, match="sequence 8 was not opened"):
            pipeline.run((unknown.part(0, 3, (1,)), one.part(0, 21, (4, 5))), opened=(one.opened(),))
        with pytest.raises(InternalError, match="runs tokens 21 to 42, and its 2 blocks hold 32"):
            pipeline.run((LocalSequence(1, OTHER * 2).part(21, 42),))
        with pytest.raises(InternalError, match="does not fit"):
            pipeline.run((), copies=(BlockCopy(sequence_id=1, index=7, source=0, target=1),))
        first = token_of(pipeline.run((one.part(0, 21, (6,)),)), one)

        assert continued(pipeline, one, first) == expected_tokens(model, OTHER)


@pytest.mark.parametrize("chunk", [1, 7, 16, 40])
@pytest.mark.parametrize("score_start", [0, 1, 17, 39])
def test_prompt_tokens_are_scored_whatever_the_chunks(
    paths: tuple[Path, Path], model: Any, chunk: int, score_start: int
) -> None:
    scored = LocalSequence(1, PROMPT, goal=Goal.SCORE, score_start=score_start)
    other = LocalSequence(2, OTHER)
    found: dict[int, float] = {}
    with open_pipeline(paths[1], num_stages=2) as pipeline:
        for start in range(0, 40, chunk):
            parts = (scored.part(start, start + chunk, () if start else (0, 1, 2)),)
            if start == 0:
                parts = (other.part(0, 21, (3, 4)), *parts)
            done = pipeline.run(parts, opened=() if start else (scored.opened(), other.opened()))
            assert len(done.tokens) == (start == 0)
            for told in done.prompt_logprobs:
                found |= {told.start_position + i: each.logprob for i, each in enumerate(told.logprobs)}
                assert [each.token_id for each in told.logprobs] == PROMPT[told.start_position :][: len(told.logprobs)]

    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([PROMPT])).logits[0].float(), dim=-1)
    expected = {p: float(logprobs[p - 1, PROMPT[p]]) for p in range(max(1, score_start), 40)}
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_generation_tells_of_its_prompt_too(paths: tuple[Path, Path], model: Any) -> None:
    sequence = LocalSequence(1, OTHER, sampling=SamplingParams(prompt_logprobs=0))
    with open_pipeline(paths[1]) as pipeline:
        done = pipeline.run((sequence.part(0, 21, (0, 1)),), opened=(sequence.opened(),))
        later = pipeline.run((sequence.decode(done.tokens[0].token_id, 21),))

    assert [told.start_position for told in done.prompt_logprobs] == [1]
    assert len(done.prompt_logprobs[0].logprobs) == 20
    assert done.tokens[0].token_id == expected_tokens(model, OTHER, 1)[0]
    assert later.prompt_logprobs == ()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("chunk", [9, 40])
def test_a_prompt_is_pooled_from_the_last_hidden_states(
    paths: tuple[Path, Path], model: Any, pooling: str, chunk: int
) -> None:
    pooled = LocalSequence(1, PROMPT, goal=Goal.EMBED, pooling=pooling)
    vectors: list[PooledVector] = []
    with open_pipeline(paths[1], is_streamed=True) as pipeline:
        for start in range(0, 40, chunk):
            part = pooled.part(start, start + chunk, () if start else (0, 1, 2))
            done = pipeline.run((part,), opened=() if start else (pooled.opened(),))
            vectors += done.vectors
            assert len(vectors) == (start + chunk >= 40)
            assert (done.tokens, done.prompt_logprobs) == ((), ())

    with torch.inference_mode():
        hidden = model.model(torch.tensor([PROMPT])).last_hidden_state[0]
    expected = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
    vector = torch.from_numpy(np.frombuffer(vectors[0].vector, dtype="<f4").copy())
    torch.testing.assert_close(vector, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "deepseek_v3"])
def test_int8_blocks_give_nearly_the_same_scores(architecture: str, tmp_path: Path) -> None:
    _, package_dir = build_package(architecture, tmp_path)
    found: list[list[float]] = []
    for kv_dtype in ("auto", "int8"):
        scored = LocalSequence(1, PROMPT, goal=Goal.SCORE)
        with open_pipeline(package_dir, kv_dtype=kv_dtype) as pipeline:
            done = pipeline.run((scored.part(0, 40, (0, 1, 2)),), opened=(scored.opened(),))
        found.append([each.logprob for each in done.prompt_logprobs[0].logprobs])

    # Keys and values are off by up to 1/254 of their vector's largest; log-probabilities follow in the same order.
    assert found[1] == pytest.approx(found[0], abs=0.05)
    assert found[1] != found[0]


def test_kernels_are_compiled_before_a_stage_says_that_it_is_open(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(stage, "kernel_library", lambda: compiled.append(kernel_library()))
    with open_pipeline(paths[1]):
        assert compiled == [kernel_library()]


@pytest.mark.parametrize("num_stages", [1, 2])
def test_the_stage_with_the_head_reads_the_tokenizer_of_grammars_when_it_opens(
    paths: tuple[Path, Path], num_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: queue.Queue[tuple[Path, tuple[int, ...]]] = queue.Queue()
    monkeypatch.setattr(grammar_masks, "read_tokenizer", lambda *arguments: read.put(arguments))
    with open_pipeline(paths[1], num_stages=num_stages):
        assert read.get(timeout=60) == (paths[1], read_manifest(paths[1]).eos_token_ids)
    assert read.empty()


def spoil(monkeypatch: pytest.MonkeyPatch, first_row: int, num_rows: int) -> None:
    """Make the last hidden states of these rows NaN, in every step from now on."""
    original = Head.__init__

    def spoiled(head: Head, skeleton: Skeleton, outputs: Any, options: Any) -> None:
        outputs.last_hidden_state[0, first_row : first_row + num_rows] = torch.nan
        original(head, skeleton, outputs, options)

    monkeypatch.setattr(Head, "__init__", spoiled)


def numbers_of(done: StepDone, sequence_id: int) -> npt.NDArray[np.float32]:
    """Return all numbers that a step told of a sequence."""
    scores = [
        each.logprob for told in done.prompt_logprobs if told.sequence_id == sequence_id for each in told.logprobs
    ]
    vectors = [np.frombuffer(told.vector, dtype="<f4") for told in done.vectors if told.sequence_id == sequence_id]
    tokens = [float(token.token_id) for token in done.tokens if token.sequence_id == sequence_id]
    return np.concatenate([np.array(scores), np.array(tokens), *vectors]).astype(np.float32)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"sampling": SamplingParams(prompt_logprobs=0)},
        {"goal": Goal.SCORE},
        {"goal": Goal.EMBED, "pooling": "mean"},
        {"goal": Goal.EMBED, "pooling": "last"},
    ],
    ids=["generation", "generation with prompt", "score", "mean", "last"],
)
def test_what_is_no_number_fails_its_own_sequence_whatever_is_wanted_of_it(
    paths: tuple[Path, Path], wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [LocalSequence(i, OTHER[:-i], **wanted) for i in (1, 2, 3)]
    parts = tuple(each.part(0, len(each.prompt), (2 * each.id, 2 * each.id + 1)) for each in sequences)
    opened = tuple(each.opened() for each in sequences)
    with open_pipeline(paths[1]) as pipeline:
        healthy = pipeline.run(parts, opened=opened)
        pipeline.run((), closed=(1, 2, 3))
        with monkeypatch.context() as context:
            spoil(context, len(sequences[0].prompt), len(sequences[1].prompt))
            done = pipeline.run(parts, opened=opened)
        after = pipeline.run(parts, closed=(1, 2, 3), opened=opened)

    assert [(t.sequence_id, t.token_id, t.fault) for t in done.tokens if t.fault] == [(2, -1, "numerical_fault")]
    assert list(numbers_of(done, 2)) == [-1]
    for sequence_id in (1, 3):
        np.testing.assert_array_equal(numbers_of(done, sequence_id), numbers_of(healthy, sequence_id))
    for sequence_id in (1, 2, 3):
        np.testing.assert_array_equal(numbers_of(after, sequence_id), numbers_of(healthy, sequence_id))
