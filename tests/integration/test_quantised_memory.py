"""Unpacking a tensor takes its parts, its values, and little beside them."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

ROWS, COLUMNS = 4096, 12288
NUM_VALUES = ROWS * COLUMNS
# Chunks in fp32 and their indices; the allocator's rest.
SPARE_BYTES = 160 << 20

Part = tuple[str, tuple[int, ...]]
SIZES = {"I32": 4, "F32": 4, "F16": 2, "U8": 1, "F8_E4M3": 1, "I64": 8}
GPTQ: dict[str, Part] = {
    "w.qweight": ("I32", (COLUMNS // 8, ROWS)),
    "w.qzeros": ("I32", (COLUMNS // 128, ROWS // 8)),
    "w.scales": ("F16", (COLUMNS // 128, ROWS)),
}
AWQ: dict[str, Part] = {**GPTQ, "w.qweight": ("I32", (COLUMNS, ROWS // 8))}
CASES: dict[str, tuple[dict[str, object], dict[str, Part], int]] = {
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"w.weight": ("F8_E4M3", (ROWS, COLUMNS)), "w.weight_scale_inv": ("F32", (ROWS // 128, COLUMNS // 128))},
        4,
    ),
    "nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {
            "w.weight": ("U8", (ROWS, COLUMNS // 2)),
            "w.weight_scale": ("F8_E4M3", (ROWS, COLUMNS // 16)),
            "w.weight_scale_2": ("F32", ()),
        },
        4,
    ),
    "compressed": (
        {"quant_method": "compressed-tensors"},
        {
            "w.weight_packed": ("I32", (ROWS, COLUMNS // 8)),
            "w.weight_scale": ("F16", (ROWS, COLUMNS // 32)),
            "w.weight_shape": ("I64", (2,)),
        },
        4,
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, GPTQ, 4),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128}, AWQ, 4),
    "mxfp4": (
        {"quant_method": "mxfp4"},
        {
            "w.weight_blocks": ("U8", (4, ROWS // 4, COLUMNS // 32, 16)),
            "w.weight_scales": ("U8", (4, ROWS // 4, COLUMNS // 32)),
        },
        2,
    ),
}  # fmt: skip
PROGRAM = """
import resource, sys, torch
from pathlib import Path
from teengined_plugins.sources.hf_directory import DirectoryCheckpoint
torch.set_num_threads(1)
torch.ones(8, 8) @ torch.ones(8, 8)
checkpoint = DirectoryCheckpoint(Path(sys.argv[1]), "x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = checkpoint.read("w.weight")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, values.numel())
"""


SHAPE = ROWS.to_bytes(8, "little") + COLUMNS.to_bytes(8, "little")


def sparse_file(path: Path, parts: dict[str, Part]) -> int:
    """Write tensors of zeros that take no room on the disk; return their bytes."""
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in parts.items():
        size = prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        if "w.weight_shape" in parts:  # It is the last.
            file.seek(-len(SHAPE), 2)
            file.write(SHAPE)
    return end


@pytest.mark.parametrize("form", CASES)
def test_unpacking_takes_parts_and_values(form: str, tmp_path: Path) -> None:
    settings, parts, value_bytes = CASES[form]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    stored_bytes = sparse_file(tmp_path / "model.safetensors", parts)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=100, check=True
    )

    grown, num_values = (int(word) for word in done.stdout.split())
    assert num_values == NUM_VALUES
    assert grown <= stored_bytes + value_bytes * NUM_VALUES + SPARE_BYTES
