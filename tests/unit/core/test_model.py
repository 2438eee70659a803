"""A manifest adds up its units and finds those of a layer."""

from dataclasses import replace

from teengined.core.model import MANIFEST_SCHEMA, ModelManifest, UnitKind, UnitSpec


def unit(name: str, kind: UnitKind, layer: int | None = None, expert: int | None = None) -> UnitSpec:
    return UnitSpec(
        id=name,
        kind=kind,
        layer=layer,
        expert=expert,
        precision="fp32",
        file="units/a.safetensors",
        offset_bytes=0,
        size_bytes=4096,
        num_parameters=1000,
        digest="blake2b:" + 64 * "0",
        tensors=(),
    )


MANIFEST = ModelManifest(
    schema=MANIFEST_SCHEMA,
    name="tiny",
    source="a test",
    architecture="mixtral",
    num_layers=2,
    hidden_size=8,
    vocab_size=16,
    max_context_tokens=32,
    kv_elements_per_token=(16, 16),
    compute_dtype="fp32",
    precision="fp32",
    eos_token_ids=(0,),
    config_digest="",
    tokenizer_digest="",
    units=(
        unit("embedding", UnitKind.EMBEDDING),
        unit("layer.0", UnitKind.LAYER, 0),
        unit("layer.1", UnitKind.LAYER, 1),
        unit("layer.1.expert.0", UnitKind.EXPERT, 1, 0),
        unit("layer.1.expert.1", UnitKind.EXPERT, 1, 1),
        unit("head", UnitKind.HEAD),
    ),
)


def test_size_is_what_streaming_everything_once_would_move() -> None:
    assert MANIFEST.size_bytes == 6 * 4096


def test_parameters_of_all_units_are_counted() -> None:
    assert MANIFEST.num_parameters == 6000


def test_layer_gives_its_dense_unit_before_its_experts() -> None:
    assert [unit.id for unit in MANIFEST.units_of_layer(1)] == ["layer.1", "layer.1.expert.0", "layer.1.expert.1"]


def test_embedding_and_head_belong_to_no_layer() -> None:
    found = [unit.id for layer in range(MANIFEST.num_layers) for unit in MANIFEST.units_of_layer(layer)]

    assert not {"embedding", "head"} & set(found)


def test_manifest_without_units_is_empty_not_wrong() -> None:
    assert replace(MANIFEST, units=()).size_bytes == 0
