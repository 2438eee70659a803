"""Who is owed most goes first."""

from typing import Any

from teengined.interfaces.policy import SequenceView
from teengined_plugins.policies.fair import FairScheduling


def sequence(sequence_id: int, served: float, *, owner: str = "", **more: Any):
    values: dict[str, Any] = {"arrived_seconds": 0.0, "running": False} | more
    return SequenceView(
        id=sequence_id,
        owner=owner or str(served),
        num_prompt_tokens=1,
        num_computed_tokens=0,
        num_emitted_tokens=0,
        owner_served_tokens=served,
        **values,
    )


def test_owner_that_was_served_least_goes_first_even_before_what_runs():
    assert FairScheduling().order([sequence(1, 10.0, running=True), sequence(2, 5.0)], 9.0) == [2, 1]


def test_of_one_owner_what_runs_goes_first_and_then_what_came_first():
    waiting = [sequence(1, 1.0, arrived_seconds=2.0), sequence(2, 1.0, arrived_seconds=1.0)]

    assert FairScheduling().order([*waiting, sequence(3, 1.0, running=True, arrived_seconds=3.0)], 9.0) == [3, 2, 1]


def test_priority_ranks_the_work_of_one_owner():
    assert FairScheduling().order([sequence(1, 0.0, running=True), sequence(2, 0.0, priority=1)], 9.0) == [2, 1]


def test_priority_of_one_owner_does_not_go_before_anothers_share():
    assert FairScheduling().order([sequence(2, 99.0, priority=100), sequence(1, 0.0)], 9.0) == [1, 2]


def test_owners_served_alike_are_not_ranked_by_priority():
    mine = [sequence(1, 5.0, owner="a"), sequence(2, 5.0, owner="a", priority=-100)]
    theirs = sequence(3, 5.0, owner="b", priority=100)

    assert FairScheduling().order([theirs, *mine], 9.0) == [1, 2, 3]
