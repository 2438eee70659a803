"""The compiled halves of a decoder layer against the operations that they stand for."""

import pytest
import torch

from teengined.native.decoder_layer import (
    InputWeights,
    KeptStates,
    OutputWeights,
    has_decoder_layer,
    layer_inputs,
    layer_outputs,
)
from teengined.native.library import NativeMatrix, missing_reason

pytestmark = pytest.mark.skipif(
    not has_decoder_layer(), reason=missing_reason() or "this processor has no bf16 and byte products"
)

WIDTH, INNER, NUM_HEADS, NUM_KV_HEADS, HEAD_WIDTH = 96, 200, 4, 2, 32
EPSILON = 1e-5


class Weights:
    """Random weights of a layer, with their meaning in fp32 beside what the kernels read."""

    def __init__(self, dtype: torch.dtype, *, has_extras: bool) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(7)
        self.meant: dict[str, torch.Tensor] = {}
        self.bias: dict[str, torch.Tensor] = {}
        self.kept: list[torch.Tensor] = []
        self.norm = self._vector(WIDTH)
        self.head_norms = (self._vector(HEAD_WIDTH), self._vector(HEAD_WIDTH)) if has_extras else (None, None)
        self.has_bias = has_extras

    def _vector(self, width: int) -> torch.Tensor:
        return (1 + 0.3 * torch.randn(width, generator=self.generator)).bfloat16()

    def matrix(self, name: str, num_outputs: int, num_inputs: int) -> NativeMatrix:
        weight_OI = torch.randn(num_outputs, num_inputs, generator=self.generator) * num_inputs**-0.5
        bias_O = torch.randn(num_outputs, generator=self.generator).bfloat16() if self.has_bias else None
        if bias_O is not None:
            self.bias[name] = bias_O
        bias_address = None if bias_O is None else bias_O.data_ptr()
        if self.dtype == torch.int8:
            scale_O = weight_OI.abs().amax(1) / 127
            data_OI = (weight_OI / scale_O[:, None]).round().to(torch.int8)
            self.meant[name] = data_OI.float() * scale_O[:, None]
            self.kept += [scale_O, data_OI]
            address, scales, code = data_OI.data_ptr(), scale_O.data_ptr(), NativeMatrix.INT8
        else:
            data_OI = weight_OI.bfloat16()
            self.meant[name] = data_OI.float()
            self.kept.append(data_OI)
            address, scales, code = data_OI.data_ptr(), None, NativeMatrix.BF16
        return NativeMatrix(address, scales, None, None, bias_address, num_outputs, num_inputs, code)

    def product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = (x.float() @ self.meant[name].T).bfloat16()
        return y + self.bias[name] if name in self.bias else y


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)).bfloat16()


def turned(x_TKE: torch.Tensor, cosines_TE: torch.Tensor, sines_TE: torch.Tensor) -> torch.Tensor:
    low, high = x_TKE.chunk(2, -1)
    return x_TKE * cosines_TE[:, None] + torch.cat((-high, low), -1) * sines_TE[:, None]


def rotary(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(num_rows)[:, None] * torch.rand(HEAD_WIDTH // 2, generator=torch.Generator().manual_seed(3))
    angles_TE = torch.cat((angles, angles), -1)
    return angles_TE.cos().bfloat16(), angles_TE.sin().bfloat16()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found.float() - expected.float()).norm() <= 1e-2 * expected.float().norm())


@pytest.mark.parametrize("has_extras", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("num_rows", [1, 3, 9, 40])
def test_inputs_are_what_the_operations_give(num_rows: int, dtype: torch.dtype, has_extras: bool):
    weights = Weights(dtype, has_extras=has_extras)
    stored = InputWeights(
        norm=weights.norm,
        query=weights.matrix("q", NUM_HEADS * HEAD_WIDTH, WIDTH),
        key=weights.matrix("k", NUM_KV_HEADS * HEAD_WIDTH, WIDTH),
        value=weights.matrix("v", NUM_KV_HEADS * HEAD_WIDTH, WIDTH),
        query_norm=weights.head_norms[0],
        key_norm=weights.head_norms[1],
        epsilon=EPSILON,
        head_width=HEAD_WIDTH,
    )
    hidden_TD = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(num_rows)).bfloat16()
    tables = rotary(num_rows)
    kept = KeptStates(
        keys=torch.zeros(3 * num_rows * NUM_KV_HEADS, HEAD_WIDTH, dtype=torch.bfloat16),
        values=torch.zeros(3 * num_rows * NUM_KV_HEADS, HEAD_WIDTH, dtype=torch.bfloat16),
        places_TK=torch.arange(num_rows * NUM_KV_HEADS).flip(0).view(num_rows, NUM_KV_HEADS) * 3,
    )
    queries, keys, values = layer_inputs(hidden_TD, tables, stored, kept)

    x = normed(hidden_TD, weights.norm)
    expected = [weights.product(name, x).view(num_rows, -1, HEAD_WIDTH) for name in ("q", "k", "v")]
    for index, norm in enumerate(weights.head_norms):
        expected[index] = expected[index] if norm is None else normed(expected[index], norm)
        expected[index] = turned(expected[index], *tables)
    assert close(queries, expected[0])
    assert close(keys, expected[1])
    assert close(values, expected[2])
    places = kept.places_TK.reshape(-1)
    assert torch.equal(kept.keys[places], keys.reshape(-1, HEAD_WIDTH))
    assert torch.equal(kept.values[places], values.reshape(-1, HEAD_WIDTH))
    elsewhere = torch.ones(len(kept.keys), dtype=torch.bool)
    elsewhere[places] = False
    assert not bool(kept.keys[elsewhere].any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("num_rows", [1, 3, 9, 40])
def test_outputs_are_what_the_operations_give(num_rows: int, dtype: torch.dtype):
    weights = Weights(dtype, has_extras=True)
    num_attended = NUM_HEADS * HEAD_WIDTH
    stored = OutputWeights(
        norm=weights.norm,
        output=weights.matrix("o", WIDTH, num_attended),
        gate=weights.matrix("gate", INNER, WIDTH),
        up=weights.matrix("up", INNER, WIDTH),
        down=weights.matrix("down", WIDTH, INNER),
        epsilon=EPSILON,
    )
    generator = torch.Generator().manual_seed(num_rows)
    hidden_TD = torch.randn(num_rows, WIDTH, generator=generator).bfloat16()
    attended_TI = torch.randn(num_rows, num_attended, generator=generator).bfloat16()
    result_TD = layer_outputs(attended_TI, hidden_TD, stored)

    middle = hidden_TD + weights.product("o", attended_TI)
    x = normed(middle, weights.norm)
    inner = torch.nn.functional.silu(weights.product("gate", x)) * weights.product("up", x)
    assert close(result_TD, middle + weights.product("down", inner))


def test_a_row_with_a_fault_spoils_itself_only():
    weights = Weights(torch.bfloat16, has_extras=False)
    stored = OutputWeights(
        norm=weights.norm,
        output=weights.matrix("o", WIDTH, WIDTH),
        gate=weights.matrix("gate", INNER, WIDTH),
        up=weights.matrix("up", INNER, WIDTH),
        down=weights.matrix("down", WIDTH, INNER),
        epsilon=EPSILON,
    )
    hidden_TD = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = layer_outputs(hidden_TD, hidden_TD, stored)
    spoilt_TD = hidden_TD.clone()
    spoilt_TD[2, 5] = float("nan")
    result_TD = layer_outputs(spoilt_TD, spoilt_TD, stored)
    assert not bool(result_TD[2].isfinite().any())
    assert torch.equal(result_TD[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
