"""A batch knows the positions of its tokens and the rows whose logits are wanted."""

from teengined.models.batch import BatchEntry, StepBatch
from teengined.models.kv import SequenceKV


def batch(*parts: tuple[int, int]) -> StepBatch:
    """Make a batch of (new tokens, start position)."""
    entries = tuple(
        BatchEntry(kv=SequenceKV(context_tokens=99), num_tokens=num_tokens, start_position=start)
        for num_tokens, start in parts
    )
    return StepBatch(entries=entries)


def test_positions_count_within_each_sequence() -> None:
    assert batch((2, 5), (3, 0)).positions() == [5, 6, 0, 1, 2]


def test_rows_of_last_tokens_follow_the_order_of_sequences() -> None:
    assert batch((2, 5), (3, 0), (1, 9)).last_rows([True, False, True]) == [1, 5]


def test_tokens_are_counted_over_all_sequences() -> None:
    assert batch((2, 5), (3, 0)).num_tokens == 5
