import pytest
import torch

from teengined.core.errors import InternalError, PackageCorrupt
from teengined.weights.embedding_rows import coalesce
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import EMBEDDING, build_package, stage_of
from tests.fakes.separate_device import cpu_device


def open_weights(package, *, streamed, device=None):
    weights = StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package, streamed=streamed),
        device=device or cpu_device(),
        options=StreamOptions(timeout_seconds=10),
    )
    weights.open()
    return weights


def test_coalesce_joins_consecutive_rows():
    assert coalesce([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 1), (9, 2)]
    assert coalesce([]) == []


@pytest.mark.parametrize("streamed", [(), ("embedding",)], ids=["resident", "on disk"])
@pytest.mark.parametrize("ids", [[3], [9, 2, 3, 9, 255, 0]])
def test_rows_are_those_of_the_embedding_in_the_order_asked(tmp_path, streamed, ids):
    package = build_package(tmp_path, num_layers=1)
    weights = open_weights(package, streamed=streamed)

    rows = weights.embedding_rows(EMBEDDING, torch.tensor(ids))

    assert torch.equal(rows["data"], package.tensors["embedding", EMBEDDING, "data"][ids])
    assert torch.equal(rows["scale"], package.tensors["embedding", EMBEDDING, "scale"][ids])
    weights.close()


def test_an_embedding_on_disk_takes_no_device_memory(tmp_path):
    package = build_package(tmp_path, num_layers=1)
    device = cpu_device()
    weights = open_weights(package, streamed=("embedding",), device=device)

    resident = sum(unit.size_bytes for unit in package.manifest.units if unit.id != "embedding")

    assert device.memory_info().allocated_bytes == resident
    weights.close()


def test_a_tied_parameter_stands_for_the_embedding(tmp_path):
    package = build_package(tmp_path, num_layers=1, tied=True)
    weights = open_weights(package, streamed=("embedding",))

    rows = weights.embedding_rows("lm_head.weight", torch.tensor([1]))

    assert torch.equal(rows["data"], package.tensors["embedding", EMBEDDING, "data"][[1]])
    weights.close()


@pytest.mark.parametrize("row", [-1, 256])
def test_a_row_outside_the_vocabulary_never_reads_other_bytes(tmp_path, row):
    package = build_package(tmp_path, num_layers=1)
    weights = open_weights(package, streamed=("embedding",))

    with pytest.raises(InternalError, match="256"):
        weights.embedding_rows(EMBEDDING, torch.tensor([row]))
    weights.close()


def test_an_embedding_that_stays_on_disk_is_verified_when_opened(tmp_path):
    package = build_package(tmp_path, num_layers=1)
    with package.path_of("embedding").open("r+b") as file:
        file.seek(package.unit("embedding").offset_bytes + 10)
        file.write(b"\xaa\xbb\xcc")

    with pytest.raises(PackageCorrupt, match="unit embedding"):
        open_weights(package, streamed=("embedding",))


def test_a_stage_without_embedding_has_no_rows(tmp_path):
    package = build_package(tmp_path, num_layers=1)
    weights = StageWeights(
        package_dir=tmp_path,
        manifest=package.manifest,
        stage=stage_of(package, has_embedding=False),
        device=cpu_device(),
        options=StreamOptions(),
    )
    weights.open()

    with pytest.raises(InternalError, match="no embedding parameter"):
        weights.embedding_rows(EMBEDDING, torch.tensor([0]))
    weights.close()
