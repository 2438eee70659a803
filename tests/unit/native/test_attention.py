from dataclasses import replace

import pytest
import torch

from teengined.native.attention import LogitOptions, PagedContext, has_attention, paged_attention
from teengined.native.library import missing_reason

pytestmark = pytest.mark.skipif(not has_attention(), reason=missing_reason() or "this processor has no AVX-512")

NUM_BLOCKS, BLOCK_TOKENS, LENGTHS = 64, 16, (1, 16, 17, 100, 160)
# Query heads, key-value heads, width of keys, width of values.
HEADS = [(32, 8, 64, 64), (4, 4, 24, 16), (9, 3, 64, 64), (8, 1, 80, 80), (7, 1, 5, 3)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def context_of(heads: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, PagedContext]:
    generator = torch.Generator().manual_seed(1)
    num_heads, num_kv_heads, key_width, value_width = heads
    keys = torch.randn(NUM_BLOCKS, num_kv_heads, BLOCK_TOKENS, key_width, generator=generator).to(dtype)
    values = torch.randn(NUM_BLOCKS, num_kv_heads, BLOCK_TOKENS, value_width, generator=generator).to(dtype)
    tables = torch.stack([torch.randperm(NUM_BLOCKS, generator=generator)[:10] for _ in LENGTHS]).int()
    q_BHD = torch.randn(len(LENGTHS), num_heads, key_width, generator=generator).to(dtype)
    return q_BHD, PagedContext(keys=keys, values=values, tables=tables, lengths=torch.tensor(LENGTHS).int())


def expected_row(q_HD: torch.Tensor, context: PagedContext, row: int, options: dict) -> torch.Tensor:
    """The same in double precision, a row at a time, as the formulas stand in papers."""
    length, window, softcap = LENGTHS[row], options.get("window", 0), options.get("softcap", 0.0)
    table = context.tables[row].long()
    keys, values = (s[table].transpose(0, 1).flatten(1, 2).double()[:, :length] for s in (context.keys, context.values))
    keys, values = keys[:, -window:], values[:, -window:]
    group = q_HD.shape[0] // keys.shape[0]
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    logits_HC = torch.einsum("hd,hcd->hc", q_HD.double(), keys) * options["scale"]
    if softcap:
        logits_HC = torch.tanh(logits_HC / softcap) * softcap
    if (sinks_H := options.get("sinks")) is not None:
        logits_HC = torch.cat([logits_HC, sinks_H.double()[:, None]], dim=1)
    weights_HC = torch.softmax(logits_HC, dim=1)[:, : keys.shape[1]]
    return torch.einsum("hc,hce->he", weights_HC, values)


def variants(num_heads: int) -> list[dict]:
    sinks_H = torch.randn(num_heads, generator=torch.Generator().manual_seed(2))
    return [{}, {"window": 20}, {"softcap": 5.0}, {"sinks": sinks_H}, {"window": 3, "softcap": 2.0}]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_agrees_with_the_formulas_in_double_precision(heads: tuple[int, int, int, int], dtype: torch.dtype):
    q_BHD, context = context_of(heads, dtype)
    for variant in variants(heads[0]):
        options = {"scale": heads[2] ** -0.5, **variant}
        out_BHE = paged_attention(q_BHD, context, LogitOptions(**options))
        for row, q_HD in enumerate(q_BHD):
            difference = (out_BHE[row].double() - expected_row(q_HD, context, row, options)).abs().max()
            assert difference < TOLERANCE[dtype], (heads, variant, row)


@pytest.mark.parametrize("heads", HEADS)
def test_a_rows_bits_depend_on_its_query_and_context_alone(heads: tuple[int, int, int, int]):
    q_BHD, context = context_of(heads, torch.bfloat16)
    for variant in variants(heads[0]):
        together = paged_attention(q_BHD, context, LogitOptions(scale=0.1, **variant))
        threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for row in range(len(LENGTHS)):
                mine = replace(context, tables=context.tables[row : row + 1], lengths=context.lengths[row : row + 1])
                assert torch.equal(
                    paged_attention(q_BHD[row : row + 1], mine, LogitOptions(scale=0.1, **variant))[0], together[row]
                )
        finally:
            torch.set_num_threads(threads_before)


def test_int8_keys_and_values_are_scaled_token_by_token():
    q_BHD, context = context_of((4, 2, 32, 32), torch.float32)
    scales = [states.abs().amax(-1) / 127 for states in (context.keys, context.values)]
    codes = [
        torch.round(states / scale[..., None]).to(torch.int8)
        for states, scale in zip((context.keys, context.values), scales, strict=True)
    ]
    whole = replace(context, keys=codes[0] * scales[0][..., None], values=codes[1] * scales[1][..., None])
    small = replace(context, keys=codes[0], values=codes[1], key_scales=scales[0], value_scales=scales[1])
    difference = paged_attention(q_BHD, small, LogitOptions(scale=0.2)) - paged_attention(
        q_BHD, whole, LogitOptions(scale=0.2)
    )
    assert difference.abs().max() < 1e-5


def test_a_query_that_is_not_a_number_spoils_its_own_row_only():
    q_BHD, context = context_of((4, 2, 32, 32), torch.float32)
    expected = paged_attention(q_BHD, context, LogitOptions(scale=0.2))
    q_BHD[2] = float("nan")
    out_BHE = paged_attention(q_BHD, context, LogitOptions(scale=0.2))
    assert bool(out_BHE[2].isnan().all())
    assert torch.equal(out_BHE[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


def test_logits_of_any_size_are_survived():
    q_BHD, context = context_of((4, 2, 32, 32), torch.float32)
    out_BHE = paged_attention(q_BHD * 1e4, context, LogitOptions(scale=1.0))
    assert bool(out_BHE.isfinite().all())


def test_what_would_read_past_an_array_is_refused():
    q_BHD, context = context_of((4, 2, 32, 32), torch.float32)
    with pytest.raises(AssertionError, match="3 heads over 2 key-value heads"):
        paged_attention(q_BHD[:, :3].contiguous(), context, LogitOptions(scale=0.2))
    with pytest.raises(AssertionError, match="sees at least itself"):
        paged_attention(
            q_BHD, replace(context, lengths=torch.zeros(len(LENGTHS), dtype=torch.int32)), LogitOptions(scale=0.2)
        )
