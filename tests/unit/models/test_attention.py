"""Attention equals the plain definition, whatever the borders of sequences, windows, caps and sinks."""

import math
from typing import Any

import pytest
import torch

from teengined.models.attention import attend
from teengined.models.batch import BatchEntry, StepBatch, current_batch
from teengined.models.kv import SequenceKV

NUM_HEADS, NUM_KV_HEADS, WIDTH = 4, 2, 8


def plainly(q_HTD: torch.Tensor, k_KCD: torch.Tensor, v_KCD: torch.Tensor, **options: Any) -> torch.Tensor:
    """Attend token by token and head by head, as the textbook writes it."""
    num_new, num_context = q_HTD.shape[1], k_KCD.shape[1]
    window, softcap, sinks = options.get("sliding_window"), options.get("softcap"), options.get("s_aux")
    output = torch.empty(NUM_HEADS, num_new, WIDTH)
    for head in range(NUM_HEADS):
        kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
        for row in range(num_new):
            position = num_context - num_new + row
            first = 0 if window is None else max(0, position - window + 1)
            logits = k_KCD[kv_head, first : position + 1] @ q_HTD[head, row] / math.sqrt(WIDTH)
            logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
            if sinks is not None:
                logits = torch.cat([logits, sinks[head : head + 1]])
            weights = torch.softmax(logits, 0)[: position + 1 - first]
            output[head, row] = weights @ v_KCD[kv_head, first : position + 1]
    return output.transpose(0, 1)


def packed(parts: list[tuple[int, int]], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our output and the plain one for sequences given as (new tokens, context)."""
    generator = torch.Generator().manual_seed(7)
    q = [torch.randn(1, NUM_HEADS, new, WIDTH, generator=generator) for new, _ in parts]
    k = [torch.randn(1, NUM_KV_HEADS, context, WIDTH, generator=generator) for _, context in parts]
    v = [torch.randn(1, NUM_KV_HEADS, context, WIDTH, generator=generator) for _, context in parts]
    entries = tuple(
        BatchEntry(kv=SequenceKV(context_tokens=99), num_tokens=new, start_position=context - new)
        for new, context in parts
    )
    token = current_batch.set(StepBatch(entries=entries))
    ours, _ = attend(torch.nn.Module(), torch.cat(q, 2), torch.cat(k, 2), torch.cat(v, 2), None, **options)
    current_batch.reset(token)
    expected = torch.cat([plainly(*(x[0] for x in each), **options) for each in zip(q, k, v, strict=True)])
    return ours[0], expected


SHAPES = {
    "one token": [(1, 9)],
    "a whole prompt": [(6, 6)],
    "a later chunk": [(3, 9)],
    "several sequences": [(1, 9), (6, 6), (3, 8), (1, 1)],
}
OPTIONS = {
    "plain": {},
    "window": {"sliding_window": 4},
    "window of one": {"sliding_window": 1},
    "soft cap": {"softcap": 0.7},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "window and cap": {"sliding_window": 4, "softcap": 0.7},
    "window and sinks": {"sliding_window": 4, "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("parts", SHAPES.values(), ids=SHAPES)
def test_attention_equals_its_definition(parts: list[tuple[int, int]], options: dict[str, object]) -> None:
    ours, expected = packed(parts, **options)

    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_given_scale_is_used_instead_of_the_default() -> None:
    ours, _ = packed([(1, 9)], scaling=0.0)
    default, _ = packed([(1, 9)])

    assert not torch.allclose(ours, default)
