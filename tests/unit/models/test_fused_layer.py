"""Layers that run as compiled calls: what they give beside their own modules, and when they are left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from teengined.models import fused_layer
from teengined.models.fused_layer import FusedLayer
from teengined.native.decoder_layer import has_decoder_layer
from teengined.native.library import missing_reason
from tests.fakes.converted import convert_directory
from tests.fakes.stage_runner import Part, StageRunner
from tests.fakes.tiny_models import build_tiny_model

pytestmark = pytest.mark.skipif(
    not has_decoder_layer(), reason=missing_reason() or "this processor has no bf16 and byte products"
)

USUAL = ("llama", "mistral", "qwen2", "qwen3")
PROMPTS = torch.randint(3, 300, (5, 60), generator=torch.Generator().manual_seed(1)).tolist()
BLOCKS_EACH = 4


def build_package(architecture: str, precision: str, directory: Path, **changes: Any) -> Path:
    (directory / "store").mkdir()
    source = build_tiny_model(
        architecture, directory / "source", dtype=torch.bfloat16, num_hidden_layers=2, **{"head_dim": 32, **changes}
    )
    convert_directory(source, directory / "store", precision=precision)
    return directory / "store" / "tiny"


def part(sequence: int, start: int, end: int) -> Part:
    table = range(sequence * BLOCKS_EACH, (sequence + 1) * BLOCKS_EACH)
    return Part(token_ids=PROMPTS[sequence][start:end], start_position=start, table=list(table))


def logits(runner: StageRunner) -> list[torch.Tensor]:
    """Run prompts of several lengths, then single tokens beside a chunk, then single tokens alone."""
    ends = (30, 17, 40, 2, 33)
    first = runner.run(*(part(i, 0, end) for i, end in enumerate(ends)))
    second = runner.run(*(part(i, end, end + (4 if i == 2 else 1)) for i, end in enumerate(ends)))
    third = runner.run(*(part(i, end + (4 if i == 2 else 1), end + 5) for i, end in enumerate(ends) if i == 2))
    return [*first, *second, *third]


def modules(runner: StageRunner) -> Any:
    """Return the layers' own modules."""
    return runner._model._skeleton.layers


def layers(runner: StageRunner) -> list[FusedLayer]:
    """Return the stage's layers that may run as compiled calls."""
    found: list[FusedLayer] = []
    for layer in modules(runner):
        cells = getattr(layer.forward, "__closure__", None) or ()
        found += [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, FusedLayer)]
    return found


@pytest.mark.parametrize("quantised", [False, True], ids=["kv in bf16", "kv in int8"])
@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("architecture", USUAL)
def test_logits_are_those_of_the_modules(
    architecture: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, quantised: bool
):
    package = build_package(architecture, precision, tmp_path)
    with StageRunner(package, is_strict=False, quantised=quantised) as runner:
        found = logits(runner)
        assert [layer.is_used for layer in layers(runner)] == [True, True]
    monkeypatch.setattr(fused_layer, "has_decoder_layer", lambda: False)
    with StageRunner(package, is_strict=False, quantised=quantised) as runner:
        expected = logits(runner)
        assert layers(runner) == []
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 0.03 * theirs.norm()


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("gemma2", {}), ("olmo2", {}), ("llama", {"head_dim": 24}), ("llama", {"hidden_act": "gelu"})],
)
def test_layers_of_another_form_run_as_they_are(architecture: str, changes: dict[str, Any], tmp_path: Path):
    with StageRunner(build_package(architecture, "bf16", tmp_path, **changes), is_strict=False) as runner:
        assert layers(runner) == []


def test_strict_numerics_run_operation_by_operation(tmp_path: Path):
    with StageRunner(build_package("llama", "bf16", tmp_path), is_strict=True) as runner:
        assert layers(runner) == []


def test_a_layer_that_computes_something_else_is_found_out(tmp_path: Path):
    with StageRunner(build_package("llama", "bf16", tmp_path), is_strict=False) as runner:
        first, second = modules(runner)
        original = first.mlp.forward
        first.mlp.forward = lambda x: 2 * original(x)
        logits(runner)
        assert [layer.is_used for layer in layers(runner)] == [False, True]
        assert second.mlp.forward is not None


def test_a_batch_with_a_fault_decides_nothing(tmp_path: Path):
    with StageRunner(build_package("llama", "bf16", tmp_path), is_strict=False) as runner:
        runner.run(part(0, 0, 5))
        assert all(layer.is_used for layer in layers(runner))
    with StageRunner(tmp_path / "store" / "tiny", is_strict=False) as runner:
        norm = modules(runner)[0].input_layernorm
        sound, norm.variance_epsilon = norm.variance_epsilon, float("nan")
        runner.run(part(0, 0, 5))
        assert [layer.is_used for layer in layers(runner)] == [False, False]
        norm.variance_epsilon = sound
        runner.run(part(0, 0, 5))
        assert [layer.is_used for layer in layers(runner)] == [True, True]


@pytest.mark.parametrize("attribute", ["down_proj", "q_proj", "norm"])
def test_what_is_bound_anew_is_what_the_calls_read(attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def bind_the_second_layers_in_the_first(runner: StageRunner) -> None:
        first, second = modules(runner)
        if attribute == "norm":
            weight = second.input_layernorm.weight * 3
            first.input_layernorm._parameters["weight"] = weight
        else:
            block = "mlp" if attribute == "down_proj" else "self_attn"
            getattr(getattr(first, block), attribute).parts = getattr(getattr(second, block), attribute).parts

    package = build_package("llama", "int8", tmp_path)
    with StageRunner(package, is_strict=False) as runner:
        before = runner.run(part(0, 0, 9))[0]
        bind_the_second_layers_in_the_first(runner)
        found = runner.run(part(0, 0, 9))[0]
        assert all(layer.is_used for layer in layers(runner))
    monkeypatch.setattr(fused_layer, "has_decoder_layer", lambda: False)
    with StageRunner(package, is_strict=False) as runner:
        runner.run(part(0, 0, 9))
        bind_the_second_layers_in_the_first(runner)
        expected = runner.run(part(0, 0, 9))[0]
    assert (found - expected).norm() <= 0.03 * expected.norm()
    assert (before - expected).norm() > 0.1 * expected.norm()
