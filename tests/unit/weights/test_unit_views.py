import dataclasses

import pytest
import torch

from teengined.core.errors import PackageError
from teengined.core.model import TensorSpec
from teengined.weights.unit_views import dtype_of, unit_views
from tests.fakes.package_builder import build_package


def test_views_share_the_buffers_memory_and_hold_the_stored_values(tmp_path):
    package = build_package(tmp_path, num_layers=1)
    unit = package.unit("layer.0")
    content = package.path_of("layer.0").read_bytes()[unit.offset_bytes :][: unit.size_bytes]
    buffer = torch.zeros(4096 + unit.size_bytes, dtype=torch.uint8)
    buffer[4096:] = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    views = unit_views(buffer, 4096, unit)

    for parameter, parts in views.items():
        for part, view in parts.items():
            assert torch.equal(view, package.tensors["layer.0", parameter, part])
            assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_views_have_the_dtype_and_shape_of_the_manifest(tmp_path):
    package = build_package(tmp_path, num_layers=1, rows=7)
    unit = package.unit("layer.0")

    views = unit_views(torch.zeros(unit.size_bytes, dtype=torch.uint8), 0, unit)

    assert views["model.layers.0.q.weight"]["data"].shape == (7, 1000)
    assert views["model.layers.0.q.weight"]["scale"].dtype == torch.float32
    assert views["model.layers.0.norm.weight"]["data"].dtype == torch.bfloat16


def test_an_unknown_dtype_is_refused_with_the_tensors_name():
    spec = TensorSpec(parameter="x.weight", part="data", dtype="F4", shape=(1,), offset_bytes=0, size_bytes=1)

    with pytest.raises(PackageError, match=r"x\.weight .*'F4'"):
        dtype_of(dataclasses.replace(spec))
