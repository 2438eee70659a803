import json

import pytest
import torch

from teengined.core.errors import SourceError
from teengined_plugins.sources.quantised.bitsandbytes import open_bitsandbytes
from teengined_plugins.sources.quantised.scheme import StoredTensors
from teengined_plugins.sources.safetensors_file import FileTensor

GOOD = {"quant_type": "nf4", "blocksize": 4, "shape": [3, 5]}


def opened(state: object, num_octets: int = 8) -> torch.Tensor:
    """Return the values of codes 0, 1, 2, … whose table holds themselves."""
    text = state if isinstance(state, bytes) else json.dumps(state).encode()
    codes = [(2 * i % 16) << 4 | (2 * i + 1) % 16 for i in range(num_octets)]
    tensors = {
        "w": torch.tensor(codes, dtype=torch.uint8).reshape(-1, 1),
        "w.absmax": torch.tensor([1.0, 10.0, 100.0, 1000.0]),
        "w.quant_map": torch.arange(16.0),
        "w.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
    }
    entries = {
        n: FileTensor(dtype="U8", shape=tuple(t.shape), offset_bytes=0, size_bytes=t.nbytes) for n, t in tensors.items()
    }
    (made,) = open_bitsandbytes({}, StoredTensors(tensors=entries, read=tensors.__getitem__))
    return made.read(tensors.__getitem__)


def test_an_odd_number_of_values_is_read_in_order_with_the_scale_of_its_block() -> None:
    expected = [code * 10.0 ** (code // 4) for code in range(15)]

    assert opened(GOOD).reshape(-1).tolist() == expected


@pytest.mark.parametrize(
    "state",
    [
        b"{",
        b"[]",
        b"\xff\xff",
        b"[" * 20_000,
        b"x" * 70_000,
        {},
        {**GOOD, "shape": "3, 5"},
        {**GOOD, "shape": [3, -5]},
        {**GOOD, "shape": [1 << 40, 1 << 40]},
        {**GOOD, "shape": [3, 6]},
        {**GOOD, "blocksize": 0},
        {**GOOD, "blocksize": 1 << 70},
        {**GOOD, "blocksize": None},
        {**GOOD, "blocksize": 2},
    ],
    ids=lambda state: str(state)[:40],
)
def test_a_state_that_lies_is_refused(state: object) -> None:
    with pytest.raises(SourceError, match="tensor w"):
        opened(state)
