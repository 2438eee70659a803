"""A stage's block tables follow what steps tell, and a step that is wrong spoils no later one."""

import pytest
import torch

from teengined.core.errors import InternalError
from teengined.core.sampling import SamplingParams
from teengined.engine.sequences import Sequences
from teengined.models.kv import LayerBlocks
from teengined.protocol.worker_messages import BlockCopy, RunStep, SequenceOpen, SequencePart
from tests.unit.models.pools import make_pool

NUM_BLOCKS = 64  # of four tokens


def opened(*ids: int) -> tuple[SequenceOpen, ...]:
    return tuple(SequenceOpen(sequence_id=i, num_prompt_tokens=5, sampling=SamplingParams()) for i in ids)


def part(sequence_id: int, num_tokens: int, start: int = 0, blocks: tuple[int, ...] = ()) -> SequencePart:
    return SequencePart(sequence_id=sequence_id, token_ids=(7,) * num_tokens, start_position=start, new_blocks=blocks)


def step(*parts: SequencePart, **changes) -> RunStep:
    return RunStep(deployment_id="d", step=3, parts=parts, **changes)


def filled() -> tuple[Sequences, LayerBlocks]:
    """Return tables over a pool in which every key is the number of its block."""
    pool = make_pool(2, num_kv_heads=1)
    states = torch.zeros(1, 1, 1, 1)
    layer = pool.layer(0, states, states)
    layer.keys_NKTD[:] = torch.arange(1.0, NUM_BLOCKS + 1)[:, None, None, None]
    return Sequences(pool), layer


def key(layer: LayerBlocks, block: int) -> float:
    return float(layer.keys_NKTD[block].unique())


def test_a_table_grows_by_the_blocks_that_parts_bring() -> None:
    sequences, _ = filled()
    sequences.apply(step(part(1, 4, 0, (9,)), opened=opened(1)))
    later = step(part(1, 3, 4, (2,)))
    sequences.apply(later)

    (entry,) = sequences.entries(later)
    assert (list(entry.table), entry.start_position, entry.num_tokens) == ([9, 2], 4, 3)


def test_a_closed_sequence_is_unknown_and_may_come_again() -> None:
    sequences, _ = filled()
    sequences.apply(step(part(1, 4, 0, (9,)), opened=opened(1)))
    again = step(part(1, 2, 0, (5,)), closed=(1,), opened=opened(1))
    sequences.apply(again)

    assert list(sequences.entries(again)[0].table) == [5]
    with pytest.raises(InternalError, match="sequence 1 was not opened"):
        sequences.apply(step(part(1, 1, 2), closed=(1, 99)))


def test_new_blocks_are_cleared_and_a_prefix_is_not() -> None:
    sequences, layer = filled()

    # Positions below 6 are there already: in block 10, and in the first half of 11.
    sequences.apply(step(part(1, 4, 6, (10, 11, 12)), opened=opened(1)))

    assert [key(layer, block) for block in (10, 11, 12, 13)] == [11, 12, 0, 14]


def test_blocks_are_copied_before_they_are_cleared_for_their_next_owner() -> None:
    sequences, layer = filled()
    copy = BlockCopy(sequence_id=2, index=0, source=3, target=20)

    wanted = step(part(1, 4, 0, (3,)), part(2, 1, 3, (3,)), opened=opened(1, 2), copies=(copy,))
    sequences.apply(wanted)

    assert layer.keys_NKTD[20].flatten().tolist() == [4, 4, 4, 0]
    assert key(layer, 3) == 0
    assert [list(entry.table) for entry in sequences.entries(wanted)] == [[3], [20]]


def test_of_a_copied_block_only_what_the_sequence_shares_is_kept() -> None:
    sequences, layer = filled()
    layer.keys_NKTD[3, :, 3:] = torch.nan  # of the one that wrote it, beyond what is shared
    copy = BlockCopy(sequence_id=2, index=1, source=3, target=20)

    sequences.apply(step(part(2, 1, 6, (9, 3)), opened=opened(2), copies=(copy,)))

    assert layer.keys_NKTD[20].flatten().tolist() == [4, 4, 0, 0]
    assert layer.keys_NKTD[3].flatten()[:3].tolist() == [4, 4, 4]


def test_a_copy_may_read_what_an_earlier_one_wrote() -> None:
    sequences, layer = filled()
    copies = tuple(
        BlockCopy(sequence_id=1, index=index, source=source, target=target)
        for index, source, target in ((0, 3, 20), (1, 20, 21), (2, 5, 20))
    )

    sequences.apply(step(part(1, 1, 12, (3, 4, 5, 6)), opened=opened(1), copies=copies))

    assert (key(layer, 20), key(layer, 21)) == (6, 4)


def test_a_wrong_part_keeps_the_others_from_nothing() -> None:
    sequences, _ = filled()
    with pytest.raises(InternalError, match="step 3: sequence 8 was not opened"):
        sequences.apply(step(part(8, 1), part(1, 4, 0, (9,)), opened=opened(1)))

    assert list(sequences.entries(step(part(1, 4)))[0].table) == [9]


@pytest.mark.parametrize("blocks", [(NUM_BLOCKS,), (-1,)])
def test_blocks_beyond_the_pool_are_refused(blocks: tuple[int, ...]) -> None:
    sequences, _ = filled()

    with pytest.raises(InternalError, match="got blocks"):
        sequences.apply(step(part(1, 1, 0, blocks), opened=opened(1)))


@pytest.mark.parametrize(("index", "source", "target"), [(1, 0, 1), (-1, 0, 1), (0, NUM_BLOCKS, 1), (0, 0, -1)])
def test_copies_that_do_not_fit_are_refused(index: int, source: int, target: int) -> None:
    sequences, _ = filled()
    copy = BlockCopy(sequence_id=1, index=index, source=source, target=target)

    with pytest.raises(InternalError, match="does not fit"):
        sequences.apply(step(part(1, 1, 0, (9,)), opened=opened(1), copies=(copy,)))


@pytest.mark.parametrize(("num_tokens", "start"), [(5, 0), (1, 4), (0, 0), (1, -1)])
def test_a_part_beyond_its_blocks_is_refused(num_tokens: int, start: int) -> None:
    sequences, _ = filled()
    wanted = step(part(1, num_tokens, start, (9,)), opened=opened(1))
    sequences.apply(wanted)

    with pytest.raises(InternalError, match=r"sequence 1 runs tokens .* and its 1 blocks hold 4"):
        sequences.entries(wanted)
