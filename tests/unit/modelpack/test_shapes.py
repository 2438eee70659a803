"""The shapes that `synth` knows are those of the models that they are named after."""

import json
from pathlib import Path

import pytest

from teengined.core.errors import RequestError
from teengined.modelpack.assembly import plan_files
from teengined.modelpack.outline import build_config, build_outline
from teengined.modelpack.shapes import KNOWN_SHAPES, config_like

# As their makers state them, in billions.
PUBLISHED = {
    "kimi-k2": 1026,
    "deepseek-v3": 671,
    "qwen3-moe-30b": 30.5,
    "mixtral-8x7b": 46.7,
    "llama-1b": 1.24,
    "llama-8b": 8.03,
    "llama-70b": 70.6,
}


@pytest.mark.parametrize("name", KNOWN_SHAPES)
def test_a_known_shape_can_run_and_has_as_many_parameters_as_its_maker_states(name: str) -> None:
    outline = build_outline(build_config(config_like(name)), "bf16")
    parameters = sum(
        max(parameter.num_experts, 1) * size
        for file in plan_files(outline)
        for parameter in file.parameters
        if (size := _elements(parameter.shape))
    )

    assert parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


def _elements(shape: tuple[int, ...]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number


def test_an_unknown_shape_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(RequestError) as refused:
        config_like("kimi-k3")

    assert refused.value.hint.startswith("did you mean kimi-k2? there are: kimi-k2, deepseek-v3")


@pytest.mark.parametrize("inside", [False, True])
def test_a_config_of_ones_own_is_a_shape_too(inside: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))

    assert config_like(str(tmp_path if inside else tmp_path / "config.json")) == {"model_type": "llama"}


@pytest.mark.parametrize("content", ["", "[]", "{", "{" * 100_000, "\udcff"])
def test_a_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(RequestError, match=r"config\.json"):
        config_like(str(tmp_path))
