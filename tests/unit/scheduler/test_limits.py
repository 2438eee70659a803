from math import inf

import pytest

from teengined.scheduler.limits import SpoolLimits
from tests.unit.scheduler.machine import limits


@pytest.mark.parametrize(
    "wrong",
    [{"max_running": 0}, {"num_blocks": 0}, {"max_step_tokens": 0}, {"max_waiting": -1}, {"num_microbatches": 0}],
)
def test_bounds_under_which_nothing_runs_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        limits(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"checkpoint_tokens": -1}, {"checkpoint_seconds": -1.0}, {"checkpoint_seconds": inf}]
)
def test_intervals_without_an_end_or_before_their_beginning_are_refused(wrong):
    with pytest.raises(ValueError, match="must not be negative"):
        limits(spool=SpoolLimits(**wrong))


def test_nobody_has_to_be_allowed_to_wait():
    assert limits(max_waiting=0, max_owner_waiting=0).max_waiting == 0
