from teengined.kvcache.block_table import BlockTable, num_blocks_for


def test_blocks_are_counted_up_to_the_last_token():
    assert [num_blocks_for(num_tokens, 4) for num_tokens in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_table_says_what_it_lacks_and_what_still_fits():
    table = BlockTable(4, block_ids=[7, 3])

    assert [table.num_missing(num_tokens) for num_tokens in (1, 8, 9, 17)] == [0, 0, 1, 3]
    assert [table.num_fitting(num_more) for num_more in (0, 2)] == [8, 16]
