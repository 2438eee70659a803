"""Keys and values are kept per sequence and handed to attention one sequence after another."""

import pytest
import torch

from teengined.core.errors import ContextTooLong
from teengined.models.batch import BatchEntry
from teengined.models.kv import SequenceKV, StepCache


def states(num_tokens: int, value: float, width: int = 3) -> torch.Tensor:
    return torch.full((1, 2, num_tokens, width), value)


def test_appended_states_come_back_in_order() -> None:
    kv = SequenceKV(context_tokens=8)
    kv.append(5, 0, states(3, 1.0), states(3, -1.0))

    keys, values = kv.append(5, 3, states(1, 2.0), states(1, -2.0))

    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 2]
    assert values[0, 1, :, 0].tolist() == [-1, -1, -1, -2]


def test_layers_do_not_share_states() -> None:
    kv = SequenceKV(context_tokens=8)
    kv.append(0, 0, states(2, 1.0), states(2, 1.0))

    keys, _ = kv.append(1, 0, states(2, 9.0), states(2, 9.0))

    assert keys.unique().tolist() == [9.0]


def test_keys_and_values_may_differ_in_width() -> None:
    keys, values = SequenceKV(context_tokens=4).append(0, 0, states(2, 1.0, width=5), states(2, 1.0, width=3))

    assert (keys.shape[-1], values.shape[-1]) == (5, 3)


def test_a_token_beyond_the_promised_context_is_refused() -> None:
    kv = SequenceKV(context_tokens=4)

    with pytest.raises(ContextTooLong, match="position 5 is beyond the 4 tokens"):
        kv.append(0, 3, states(2, 1.0), states(2, 1.0))


def test_a_cache_concatenates_the_contexts_of_its_sequences() -> None:
    old, new = SequenceKV(context_tokens=8), SequenceKV(context_tokens=8)
    old.append(0, 0, states(2, 1.0), states(2, 1.0))
    cache = StepCache(
        (
            BatchEntry(kv=old, num_tokens=1, start_position=2),
            BatchEntry(kv=new, num_tokens=2, start_position=0),
        )
    )

    keys, _ = cache.update(torch.cat([states(1, 2.0), states(2, 3.0)], dim=2), states(3, 0.0), 0)

    assert keys[0, 0, :, 0].tolist() == [1, 1, 2, 3, 3]
