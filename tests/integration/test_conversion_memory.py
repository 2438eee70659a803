"""The converter's memory does not grow with the model: one several times larger than the limit converts under it."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from teengined.modelpack.manifest import read_manifest
from tests.fakes.tiny_models import tiny_config, write_tiny_tokenizer

LIMIT_BYTES = 480 * 2**20
GROUPS = Path("/sys/fs/cgroup/memory")
SIZES = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 34}


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """What a child calls before it starts: it then has `LIMIT_BYTES`, page cache included where there are cgroups."""
    group = GROUPS / f"teengine-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
        return
    (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    try:
        yield lambda: join(group)
    finally:
        group.rmdir()


def join(group: Path) -> None:
    """Put the calling process into a control group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def sparse_checkpoint(directory: Path) -> int:
    """Write a model of zeros that takes no room on the disk; return the bytes of its tensors."""
    directory.mkdir()
    config = tiny_config("llama", **SIZES)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * prod(shape)]}
        end += 4 * prod(shape)
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config.save_pretrained(directory)
    write_tiny_tokenizer(directory)
    return end


@pytest.mark.system
@pytest.mark.slow
def test_a_model_several_times_larger_than_the_memory_limit_converts(
    tmp_path: Path, limited: Callable[[], None]
) -> None:
    size = sparse_checkpoint(tmp_path / "source")
    assert size > 4 * LIMIT_BYTES
    arguments = ["convert", str(tmp_path / "source"), "--store", str(tmp_path / "store"), "--precision", "int8"]
    done = subprocess.run(
        [sys.executable, "-m", "teengined.modelpack", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((".", "drivers", "plugins")), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert read_manifest(tmp_path / "store" / "source").num_parameters == size // 4
