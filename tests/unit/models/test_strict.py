"""With strict numerics a position's logits are the same to the last bit, whatever runs beside it and in what pieces."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fakes.converted import convert_directory
from tests.fakes.stage_runner import Part, StageRunner
from tests.fakes.tiny_models import build_tiny_model

ARCHITECTURES = ("llama", "qwen3_moe", "gemma2", "deepseek_v3")
# Precision of the weights and dtype of the computation.
NUMBERS = {
    "fp32": ("fp32", torch.float32),
    "bf16": ("bf16", torch.bfloat16),
    "int8 in fp32": ("int8", torch.float32),
    "int8 in bf16": ("int8", torch.bfloat16),
    "int4 in fp32": ("int4", torch.float32),
    "int4 and others in bf16": ("int4,layers.0.attention=bf16,head=int8", torch.bfloat16),
}
# Over several blocks of rows and more than one piece of context.
NUM_TOKENS = 80
CHUNKS = (1, 3, 7, 16, 64)
BATCHES = (3, 16)
BLOCKS_EACH = NUM_TOKENS // 16
MIXED_CHUNKS = (1, 3, 7, 16, 5)

PROMPTS = torch.randint(3, 300, (max(BATCHES), NUM_TOKENS), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_package(architecture: str, numbers: str, directory: Path) -> Path:
    precision, dtype = NUMBERS[numbers]
    (directory / "store").mkdir()
    source = build_tiny_model(architecture, directory / "source", dtype=dtype, num_hidden_layers=2)
    convert_directory(source, directory / "store", precision=precision)
    return directory / "store" / "tiny"


def table(index: int) -> list[int]:
    return list(range(index * BLOCKS_EACH, (index + 1) * BLOCKS_EACH))


def alone(runner: StageRunner, chunk: int) -> torch.Tensor:
    """Run the first prompt by itself, so many tokens at a time."""
    cuts = range(0, NUM_TOKENS, chunk)
    parts = [Part(token_ids=PROMPTS[0][s : s + chunk], start_position=s, table=table(0)) for s in cuts]
    return torch.cat([runner.run(part)[0] for part in parts])


def among(runner: StageRunner, num_sequences: int) -> torch.Tensor:
    """Run the first prompt in pieces of several sizes, last of a batch of others in pieces of other sizes."""
    positions = [0] * num_sequences
    found: list[torch.Tensor] = []
    while positions[0] < NUM_TOKENS:
        parts: list[Part] = []
        for index in reversed(range(num_sequences)):
            start = positions[index]
            ids = PROMPTS[index][start : start + MIXED_CHUNKS[(index + start // 11) % len(MIXED_CHUNKS)]]
            if ids:
                parts.append(Part(token_ids=ids, start_position=start, table=table(index)))
            positions[index] += len(ids)
        found.append(runner.run(*parts)[-1])
    return torch.cat(found)


def after_a_prefix(runner: StageRunner, num_shared: int = 2) -> torch.Tensor:
    """Run the first prompt from where it shares its first blocks with one that ran before."""
    shared = [*table(0)[:num_shared], *range(200, 200 + BLOCKS_EACH)]
    first, middle = num_shared * 16, 57
    parts = [
        Part(token_ids=PROMPTS[0][s:e], start_position=s, table=shared)
        for s, e in ((first, middle), (middle, NUM_TOKENS))
    ]
    return torch.cat([runner.run(part)[0] for part in parts])


def differing(runner: StageRunner) -> list[str]:
    """Return the ways of running the first prompt that do not give the logits of running it whole and alone."""
    expected = alone(runner, NUM_TOKENS)
    assert expected.isfinite().all()
    assert len(expected.argmax(dim=1).unique()) > 1, "the model tells positions apart"
    ways = {f"chunks of {chunk}": alone(runner, chunk) for chunk in CHUNKS}
    ways |= {f"{count} sequences": among(runner, count) for count in BATCHES}
    ways["a shared prefix"] = after_a_prefix(runner)
    torch.set_num_threads(2)
    ways["two threads"] = alone(runner, NUM_TOKENS)
    ways["two threads, chunks of 16"] = alone(runner, 16)
    return [way for way, logits in ways.items() if not torch.equal(logits, expected[-len(logits) :])]


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_a_position_are_the_same_however_it_is_run(architecture: str, numbers: str, tmp_path: Path) -> None:
    with StageRunner(build_package(architecture, numbers, tmp_path), is_strict=True) as runner:
        assert differing(runner) == []


def test_they_are_the_same_with_int8_blocks(tmp_path: Path) -> None:
    with StageRunner(build_package("llama", "fp32", tmp_path), is_strict=True, quantised=True) as runner:
        assert differing(runner) == []


def test_without_strict_numerics_they_are_not(tmp_path: Path) -> None:
    with StageRunner(build_package("llama", "fp32", tmp_path), is_strict=False) as runner:
        assert differing(runner) != []


def test_strict_and_default_numerics_agree_within_rounding(tmp_path: Path) -> None:
    package_dir = build_package("gemma2", "fp32", tmp_path)
    with StageRunner(package_dir, is_strict=True) as strict, StageRunner(package_dir, is_strict=False) as default:
        torch.testing.assert_close(alone(strict, 7), alone(default, 7), atol=1e-4, rtol=1e-4)
