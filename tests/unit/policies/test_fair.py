"""Who is owed most goes first."""

from teengined.interfaces.policy import SequenceView
from teengined_plugins.policies.fair import FairScheduling


def sequence(sequence_id: int, served: float, *, running: bool = False, priority: int = 0, arrived: float = 0.0):
    return SequenceView(
        id=sequence_id,
        owner=str(served),
        arrived_seconds=arrived,
        num_prompt_tokens=1,
        num_computed_tokens=0,
        num_emitted_tokens=0,
        running=running,
        priority=priority,
        owner_served_tokens=served,
    )


def test_owner_that_was_served_least_goes_first_even_before_what_runs():
    assert FairScheduling().order([sequence(1, 10.0, running=True), sequence(2, 5.0)], 9.0) == [2, 1]


def test_of_one_owner_what_runs_goes_first_and_then_what_came_first():
    waiting = [sequence(1, 1.0, arrived=2.0), sequence(2, 1.0, arrived=1.0)]

    assert FairScheduling().order([*waiting, sequence(3, 1.0, running=True, arrived=3.0)], 9.0) == [3, 2, 1]


def test_priority_goes_before_shares():
    assert FairScheduling().order([sequence(1, 0.0), sequence(2, 99.0, priority=1)], 9.0) == [2, 1]
