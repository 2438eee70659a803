import pytest

from teengined.client.credits import CREDITS, Credits, with_credits
from teengined.protocol.messages import Generate, TokenChunk

CHUNK = TokenChunk(request_id="r", sequence=0, token_ids=(1,), text="a")


@pytest.mark.parametrize("total", [1, 2, 5, CREDITS])
def test_daemon_is_never_left_without_credits_by_a_reader_that_reads(total: int):
    credits_, left, granted = Credits(total), total, 0

    for _ in range(10 * total):
        assert left > 0
        left -= 1
        if grant := credits_.take(CHUNK):
            left += grant.chunks
            granted += 1
        assert left <= total

    assert granted <= 10 * total / max(1, total // 2)


def test_request_says_how_far_ahead_the_daemon_may_be():
    request = Generate(model="m", prompt="a")

    assert with_credits(request).credits == CREDITS
    assert with_credits(with_credits(request)).credits == CREDITS
    assert with_credits(Generate(model="m", prompt="a", credits=3)).credits == 3
