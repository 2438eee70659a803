import tomllib
from pathlib import Path

import pytest

from teengined.cli.demo_setting import configuration_text, demo_devices
from teengined.core.model import ALIGNMENT_BYTES, MANIFEST_SCHEMA, ModelManifest, TensorSpec, UnitKind, UnitSpec
from teengined.service.config import validate_file

SHAPE = (1024, 4096)


def manifest_of(num_layers: int, kv_elements: int = 512) -> ModelManifest:
    units = [unit("embedding", UnitKind.EMBEDDING, None)]
    units += [unit(f"layer.{layer}", UnitKind.LAYER, layer) for layer in range(num_layers)]
    units.append(unit("head", UnitKind.HEAD, None))
    return ModelManifest(
        schema=MANIFEST_SCHEMA,
        name="made",
        source="made for tests",
        architecture="llama",
        num_layers=num_layers,
        hidden_size=1024,
        vocab_size=4096,
        max_context_tokens=2048,
        kv_elements_per_token=(kv_elements,) * num_layers,
        compute_dtype="bf16",
        precision="bf16",
        eos_token_ids=(0,),
        config_digest="",
        tokenizer_digest="",
        units=tuple(units),
    )


def unit(name: str, kind: UnitKind, layer: int | None) -> UnitSpec:
    size_bytes = 2 * SHAPE[0] * SHAPE[1]
    assert size_bytes % ALIGNMENT_BYTES == 0
    return UnitSpec(
        id=name,
        kind=kind,
        layer=layer,
        expert=None,
        precision="bf16",
        file="units/all.safetensors",
        offset_bytes=0,
        size_bytes=size_bytes,
        num_parameters=SHAPE[0] * SHAPE[1],
        digest="",
        tensors=(
            TensorSpec(
                parameter=f"{name}.weight",
                part="data",
                dtype="BF16",
                shape=SHAPE,
                offset_bytes=0,
                size_bytes=size_bytes,
            ),
        ),
    )


@pytest.mark.parametrize("num_layers", [1, 8, 60])
@pytest.mark.parametrize("kv_elements", [0, 512, 100_000])
def test_the_devices_together_are_always_smaller_than_the_model(num_layers: int, kv_elements: int):
    manifest = manifest_of(num_layers, kv_elements)

    devices = demo_devices(manifest, [0, 1])

    assert 0 < sum(device.memory_bytes for device in devices) < manifest.size_bytes


@pytest.mark.parametrize(
    ("cores", "expected"),
    [([3], [(3,), (3,)]), ([0, 1], [(0,), (1,)]), ([0, 1, 2, 3, 4], [(0, 1), (2, 3)])],
)
def test_the_devices_share_the_cores(cores: list[int], expected: list[tuple[int, ...]]):
    assert [device.cores for device in demo_devices(manifest_of(4), cores)] == expected


def test_budgets_do_not_change_from_run_to_run():
    # Measurements are kept under the devices' description: another budget would measure again.
    assert demo_devices(manifest_of(4), [0, 1]) == demo_devices(manifest_of(4), [0, 1])


def test_the_daemon_accepts_the_configuration(tmp_path: Path):
    odd = tmp_path / 'a "quoted" \\ directory'
    text = configuration_text(demo_devices(manifest_of(8), [0, 1]), runtime_dir=odd, state_dir=odd, store=odd)
    file = tmp_path / "teengined.toml"
    file.write_text(text)

    config = validate_file(file)

    assert config.daemon.runtime_dir == str(odd)
    assert [device.id for device in config.devices] == ["cpu:0", "cpu:1"]
    assert tomllib.loads(text)["devices"][0]["threads"] == 1
