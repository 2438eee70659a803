import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from teengined.core.errors import SourceError
from teengined_plugins.sources.hf_directory import HFDirectory
from tests.fakes.tiny_models import build_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_tiny_model("llama", tmp_path / "model")


def sharded(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors").unlink()
    for index, shard in enumerate(sorted(set(weight_map.values()))):
        if "/" not in shard and shard.endswith(".safetensors"):
            tensors = {name: torch.full((2,), float(index)) for name, owner in weight_map.items() if owner == shard}
            save_file(tensors, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_directory_without_config_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no config\.json"):
        HFDirectory().open(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{", '{"a": ' * 100_000])
def test_a_config_that_is_no_json_object_is_refused(content: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(SourceError, match=r"config\.json"):
        HFDirectory().open(str(model))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pth", "last.ckpt"])
def test_pickles_are_refused_with_the_way_to_safetensors(name: str, model: Path) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(SourceError, match="pickle") as refused:
        HFDirectory().open(str(model))
    assert name in refused.value.message
    assert "save_pretrained" in refused.value.hint


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="no weights"):
        HFDirectory().open(str(model))


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/x.safetensors", "a/../../b.safetensors", "a\\b.safetensors"]
)
def test_an_index_that_points_out_of_the_directory_is_refused(shard: str, model: Path) -> None:
    save_file({"a": torch.zeros(2)}, model.parent / "outside.safetensors")
    sharded(model, {"a": shard})
    with pytest.raises(SourceError, match="points out"):
        HFDirectory().open(str(model))


def test_an_index_that_names_a_pickle_is_refused(model: Path) -> None:
    sharded(model, {"a": "pytorch_model-00001.bin"})
    with pytest.raises(SourceError, match=r"no \.safetensors file"):
        HFDirectory().open(str(model))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_directory_is_refused(file: str, model: Path) -> None:
    (model / file).rename(model.parent / "elsewhere")
    (model / file).symlink_to("../elsewhere")
    with pytest.raises(SourceError, match="link out"):
        HFDirectory().open(str(model))


def test_a_link_inside_the_directory_is_followed(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights-v1")
    (model / "model.safetensors").symlink_to("weights-v1")
    assert HFDirectory().open(str(model)).tensors()


def test_a_snapshot_of_the_hub_cache_may_link_to_its_blobs(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in model.iterdir():
        shutil.move(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert HFDirectory().open(str(snapshot)).tensors()


def test_a_missing_shard_is_named(model: Path) -> None:
    sharded(model, {"a": "one.safetensors", "b": "two.safetensors"})
    (model / "two.safetensors").unlink()
    with pytest.raises(SourceError, match=r"two\.safetensors is missing"):
        HFDirectory().open(str(model))


def test_a_tensor_that_the_index_promises_and_no_shard_has_is_named(model: Path) -> None:
    sharded(model, {"a": "one.safetensors", "b": "two.safetensors"})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"two\.safetensors: tensor 'c' is missing"):
        HFDirectory().open(str(model))


def test_the_index_decides_where_two_shards_hold_the_same_name(model: Path) -> None:
    sharded(model, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file({"a": torch.full((2,), 9.0), "b": torch.ones(2)}, model / "two.safetensors")
    checkpoint = HFDirectory().open(str(model))
    assert checkpoint.read("a").tolist() == [0.0, 0.0]
    checkpoint.close()


def test_a_tokenizer_that_is_missing_or_broken_is_refused(model: Path, tmp_path: Path) -> None:
    checkpoint = HFDirectory().open(str(model))
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(SourceError, match=r"tokenizer\.json cannot be loaded"):
        checkpoint.write_tokenizer(tmp_path)
    (model / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="no tokenizer"):
        checkpoint.write_tokenizer(tmp_path)


def test_a_chat_template_inside_the_tokenizer_settings_gets_a_file_of_its_own(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    written = HFDirectory().open(str(model)).write_tokenizer(target)
    assert "chat_template.jinja" in written
    assert "assistant:" in (target / "chat_template.jinja").read_text()
    assert "chat_template" not in json.loads((target / "tokenizer_config.json").read_text())


def test_the_fingerprint_follows_the_content(model: Path) -> None:
    before = HFDirectory().open(str(model)).fingerprint
    assert HFDirectory().open(str(model)).fingerprint == before
    save_file({"a": torch.zeros(2)}, model / "model.safetensors")
    assert HFDirectory().open(str(model)).fingerprint != before
