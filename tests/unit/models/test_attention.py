"""Attention equals the plain definition, whatever the borders of sequences, blocks, windows, caps and sinks."""

import math
from typing import Any

import pytest
import torch

from teengined.core.errors import UnsupportedArchitecture
from teengined.models import attention
from teengined.models.attention import attend
from teengined.models.cache import StepCache, current_cache
from teengined.models.latent_attention import defer_expansion
from tests.unit.models.pools import batch_of, make_pool, make_tables, store

NUM_HEADS, NUM_KV_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6
Parts = list[tuple[int, int]]


def plainly(q_HTD: torch.Tensor, k_KCD: torch.Tensor, v_KCE: torch.Tensor, **options: Any) -> torch.Tensor:
    """Attend token by token and head by head, as the textbook writes it."""
    num_new, num_context = q_HTD.shape[1], k_KCD.shape[1]
    window, softcap, sinks = options.get("sliding_window"), options.get("softcap"), options.get("s_aux")
    output = torch.empty(NUM_HEADS, num_new, v_KCE.shape[2])
    for head in range(NUM_HEADS):
        kv_head = head // (NUM_HEADS // k_KCD.shape[0])
        for row in range(num_new):
            position = num_context - num_new + row
            first = 0 if window is None else max(0, position - window + 1)
            logits = k_KCD[kv_head, first : position + 1] @ q_HTD[head, row] / math.sqrt(q_HTD.shape[2])
            logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
            if sinks is not None:
                logits = torch.cat([logits, sinks[head : head + 1]])
            weights = torch.softmax(logits, 0)[: position + 1 - first]
            output[head, row] = weights @ v_KCE[kv_head, first : position + 1]
    return output.transpose(0, 1)


def paged(
    parts: Parts, *, is_strict: bool = False, quantised: bool = False, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our output and the plain one for sequences given as (new tokens, context)."""
    generator = torch.Generator().manual_seed(7)
    q = [torch.randn(1, NUM_HEADS, new, WIDTH, generator=generator) for new, _ in parts]
    k = [torch.randn(1, NUM_KV_HEADS, context, WIDTH, generator=generator) for _, context in parts]
    v = [torch.randn(1, NUM_KV_HEADS, context, VALUE_WIDTH, generator=generator) for _, context in parts]
    pool = make_pool(NUM_KV_HEADS * (WIDTH + VALUE_WIDTH), quantised=quantised)
    tables = make_tables([context for _, context in parts], pool)
    before = [(table, context - new, i) for i, (table, (new, context)) in enumerate(zip(tables, parts, strict=True))]
    _poison(pool, k, v, tables)
    old = [(table, end, i) for table, end, i in before if end]
    if old:
        batch = batch_of(pool, [table for table, _, _ in old], [(0, end) for _, end, _ in old])
        store(
            StepCache(batch, is_strict=is_strict),
            [k[i][:, :, :e] for _, e, i in old],
            [v[i][:, :, :e] for _, e, i in old],
        )
    cache = StepCache(batch_of(pool, tables, [(c - n, c) for n, c in parts]), is_strict=is_strict)
    token = current_cache.set(cache)
    keys, values = store(cache, [k[i][:, :, e:] for _, e, i in before], [v[i][:, :, e:] for _, e, i in before])
    ours, _ = attend(torch.nn.Module(), torch.cat(q, 2), keys, values, None, **options)
    current_cache.reset(token)
    expected = torch.cat([plainly(*(x[0] for x in each), **options) for each in zip(q, k, v, strict=True)])
    return ours[0], expected


def _poison(pool: Any, k: list[torch.Tensor], v: list[torch.Tensor], tables: list[list[int]]) -> None:
    """Let every block that belongs to none of the sequences hold NaN, as after a faulty owner."""
    blocks = pool.layer(0, k[0], v[0])
    owned = {block for table in tables for block in table}
    if blocks.key_scales_NKT is None:
        for block in set(range(pool.shape.num_blocks)) - owned:
            blocks.keys_NKTD[block] = blocks.values_NKTE[block] = math.nan


SHAPES: dict[str, Parts] = {
    "one token": [(1, 9)],
    "the first token": [(1, 1)],
    "a whole prompt": [(6, 6)],
    "a later chunk": [(3, 9)],
    "two chunks of few tokens and a decode": [(16, 40), (5, 33), (1, 20)],
    "a chunk of few tokens beside one of many": [(16, 40), (17, 33), (1, 20)],
    "a chunk over many blocks": [(70, 140)],
    "decodes of one length": [(1, 9), (1, 9)],
    "decodes of like lengths": [(1, 9), (1, 12), (1, 7)],
    "decodes of unlike lengths": [(1, 33), (1, 2), (1, 9), (1, 70)],
    "several sequences": [(1, 9), (6, 6), (3, 8), (1, 1)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 4},
    "window of one": {"sliding_window": 1},
    "window across blocks": {"sliding_window": 6},
    "soft cap": {"softcap": 0.7},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "window and cap": {"sliding_window": 4, "softcap": 0.7},
    "window and sinks": {"sliding_window": 4, "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("is_strict", [False, True], ids=["default", "strict"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES)
def test_attention_equals_its_definition(parts: Parts, options: dict[str, Any], is_strict: bool) -> None:
    ours, expected = paged(parts, is_strict=is_strict, **options)

    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES)
def test_attention_without_compiled_kernels_equals_its_definition(
    parts: Parts, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "can_attend_rows", lambda *_: False)
    ours, expected = paged(parts, **options)

    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES)
def test_attention_over_int8_blocks_is_near_its_definition(parts: Parts) -> None:
    # A number is off by at most half a step, 1/254 of its vector's largest (about 3 here): values by 0.012, and keys
    # move logits by a few hundredths.
    ours, expected = paged(parts, quantised=True)

    torch.testing.assert_close(ours, expected, atol=0.05, rtol=0)
    assert not torch.equal(ours, expected)


def test_the_given_scale_is_used_instead_of_the_default() -> None:
    ours, _ = paged([(1, 9)], scaling=0.0)
    default, _ = paged([(1, 9)])

    assert not torch.allclose(ours, default)


class Latent(torch.nn.Module):
    """Expands one latent of a token into the keys and values of two heads."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.up = torch.randn(5, NUM_KV_HEADS * (WIDTH - 3 + VALUE_WIDTH), generator=generator)

    def expand_kv(self, latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        num_rows, _, num_tokens, _ = latent.shape
        states = (latent @ self.up).view(num_rows, num_tokens, NUM_KV_HEADS, -1).transpose(1, 2)
        keys, values = states.split([WIDTH - 3, VALUE_WIDTH], dim=-1)
        return torch.cat([keys, rotary.expand(-1, NUM_KV_HEADS, -1, -1)], dim=-1), values


@pytest.mark.parametrize("is_strict", [False, True], ids=["default", "strict"])
@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES)
def test_latents_are_stored_once_and_expanded_for_attention(parts: Parts, is_strict: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    module = Latent()
    q = [torch.randn(1, NUM_HEADS, new, WIDTH, generator=generator) for new, _ in parts]
    latents = [torch.randn(1, 1, context, 5, generator=generator) for _, context in parts]
    rotary = [torch.randn(1, 1, context, 3, generator=generator) for _, context in parts]
    whole = [module.expand_kv(*each) for each in zip(latents, rotary, strict=True)]
    expected = torch.cat([plainly(a[0], k[0], v[0]) for a, (k, v) in zip(q, whole, strict=True)])
    pool = make_pool(8, num_kv_heads=1)
    tables = make_tables([context for _, context in parts], pool)
    defer_expansion(module)

    for spans in ([(0, c - n) for n, c in parts], [(c - n, c) for n, c in parts]):
        live = [i for i, (start, end) in enumerate(spans) if end > start]
        if not live:
            continue
        batch = batch_of(pool, [tables[i] for i in live], [spans[i] for i in live])
        cache = StepCache(batch, is_strict=is_strict)
        token = current_cache.set(cache)
        cut = [[x[i][:, :, slice(*spans[i])] for i in live] for x in (latents, rotary)]
        keys, values = module.expand_kv(*store(cache, *cut))
    ours, _ = attend(module, torch.cat(q, 2), keys, values, None)
    current_cache.reset(token)

    torch.testing.assert_close(ours[0], expected, atol=1e-4, rtol=1e-4)


def test_a_module_that_changes_keys_after_storing_them_is_refused() -> None:
    pool = make_pool(NUM_KV_HEADS * 2 * WIDTH)
    states = torch.randn(1, NUM_KV_HEADS, 3, WIDTH)
    cache = StepCache(batch_of(pool, [[0]], [(0, 3)]), is_strict=False)
    token = current_cache.set(cache)
    keys, values = store(cache, [states], [states])

    with pytest.raises(UnsupportedArchitecture, match="changes keys or values"):
        attend(torch.nn.Module(), torch.randn(1, NUM_HEADS, 3, WIDTH), keys * 2, values, None)
    current_cache.reset(token)
