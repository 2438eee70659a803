"""A batch knows where its tokens go, and which contexts are attended together."""

import torch

from tests.unit.models.pools import batch_of, make_pool


def test_positions_count_within_each_sequence() -> None:
    batch = batch_of(make_pool(4), [[0, 1], [2]], [(5, 7), (0, 3)])

    assert batch.positions_T.tolist() == [5, 6, 0, 1, 2]
    assert batch.first_rows == [0, 2]
    assert batch.num_tokens == 5


def test_new_tokens_go_to_their_places_in_their_blocks() -> None:
    batch = batch_of(make_pool(4), [[7, 3], [2]], [(3, 5), (0, 1)])

    # (block * heads + head) * tokens of a block + place in the block
    assert batch.write_rows(1).tolist() == [[7 * 4 + 3], [3 * 4], [2 * 4]]
    assert batch.write_rows(2).tolist() == [[59, 63], [24, 28], [16, 20]]


def test_decodes_of_like_length_are_one_group_in_order() -> None:
    batch = batch_of(make_pool(4), [[0, 1, 2], [3, 4], [5, 6]], [(8, 9), (7, 8), (4, 5)])

    (group,) = batch.decode_rows(None)
    assert group.rows == (0, 1, 2)
    assert group.tables_BM.tolist() == [[0, 1, 2], [3, 4, 4], [5, 6, 6]]
    assert group.tables_BM.dtype == torch.int32
    assert group.num_context == 9
    assert group.mask_BC is not None
    assert group.mask_BC.sum(dim=1).tolist() == [9, 8, 5]


def test_decodes_of_one_length_need_no_mask() -> None:
    batch = batch_of(make_pool(4), [[0, 1], [3, 4]], [(6, 7), (6, 7)])

    assert batch.decode_rows(None)[0].mask_BC is None


def test_decodes_of_unlike_length_are_attended_apart() -> None:
    tables = [list(range(9)), [10], [11, 12], list(range(20, 30))]
    batch = batch_of(make_pool(4), tables, [(35, 36), (0, 1), (4, 5), (39, 40)])

    assert [group.rows for group in batch.decode_rows(None)] == [(1, 2), (0, 3)]


def test_few_contexts_are_gathered_at_a_time() -> None:
    table = list(range(1025))  # 4100 tokens
    pool = make_pool(4, num_blocks=1025)
    batch = batch_of(pool, [table, table, table], [(4099, 4100)] * 3)

    assert [group.rows for group in batch.decode_rows(None)] == [(0,), (1,), (2,)]


def test_a_window_leaves_out_the_blocks_before_it() -> None:
    batch = batch_of(make_pool(4), [[0, 1, 2, 3], [4, 5]], [(13, 14), (4, 5)])

    (group,) = batch.decode_rows(6)
    assert group.tables_BM.tolist() == [[2, 3], [4, 5]]
    assert group.num_context == 6
    assert group.mask_BC is not None
    assert group.mask_BC.tolist() == [[True] * 6, [True] * 5 + [False]]


def test_a_window_that_starts_within_a_block_is_masked_there() -> None:
    (group,) = batch_of(make_pool(4), [[0, 1, 2, 3]], [(13, 14)]).decode_rows(4)

    assert group.tables_BM.tolist() == [[2, 3]]
    assert group.mask_BC is not None
    assert group.mask_BC.tolist() == [[False, False, True, True, True, True]]


def test_a_whole_prompt_needs_no_mask() -> None:
    (chunk,) = batch_of(make_pool(4), [[0, 1]], [(0, 6)]).chunks(None)

    assert (chunk.rows, chunk.num_context, chunk.mask_RC) == (slice(0, 6), 6, None)


def test_a_later_chunk_sees_what_was_before_it() -> None:
    batch = batch_of(make_pool(4), [[9], [0, 1]], [(0, 1), (4, 6)])

    (chunk,) = batch.chunks(None)
    assert chunk.rows == slice(1, 3)
    assert chunk.mask_RC is not None
    assert chunk.mask_RC.tolist() == [[True] * 5 + [False], [True] * 6]


def test_a_chunk_in_a_window_leaves_out_the_blocks_before_it() -> None:
    (chunk,) = batch_of(make_pool(4), [[5, 6, 7]], [(9, 11)]).chunks(3)

    assert (chunk.base_position, chunk.table_1M.tolist(), chunk.num_context) == (4, [[6, 7]], 7)
    assert chunk.mask_RC is not None
    assert chunk.mask_RC.tolist() == [[False] * 3 + [True] * 3 + [False], [False] * 4 + [True] * 3]
