import pytest
import torch

from teengined.models.native_attention import can_attend_rows
from teengined.native.attention import has_attention
from teengined.native.library import missing_reason
from tests.unit.models.pools import make_pool

pytestmark = pytest.mark.skipif(not has_attention(), reason=missing_reason() or "this processor has no AVX-512")


@pytest.mark.parametrize(("num_heads", "is_read"), [(4, True), (2, True), (3, False)])
def test_heads_that_do_not_share_key_value_heads_evenly_are_left_to_others(num_heads: int, is_read: bool) -> None:
    states = torch.zeros(1, 2, 1, 4)
    blocks = make_pool(16).layer(0, states, states)

    assert can_attend_rows(torch.zeros(1, num_heads, 4), blocks) == is_read
