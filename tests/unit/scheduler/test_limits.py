import pytest

from tests.unit.scheduler.machine import limits


@pytest.mark.parametrize(
    "wrong",
    [{"max_running": 0}, {"num_blocks": 0}, {"max_step_tokens": 0}, {"max_waiting": -1}, {"num_microbatches": 0}],
)
def test_bounds_under_which_nothing_runs_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        limits(**wrong)


def test_nobody_has_to_be_allowed_to_wait():
    assert limits(max_waiting=0, max_owner_waiting=0).max_waiting == 0
