"""First come, first served."""

from teengined.interfaces.policy import SequenceView
from teengined_plugins.policies.fifo import FifoScheduling


def sequence(sequence_id: int, arrived: float, *, running: bool = False, priority: int = 0) -> SequenceView:
    return SequenceView(
        id=sequence_id,
        owner="someone",
        arrived_seconds=arrived,
        num_prompt_tokens=1,
        num_computed_tokens=0,
        num_emitted_tokens=0,
        running=running,
        priority=priority,
    )


def test_running_sequences_come_first_and_both_kinds_by_arrival() -> None:
    waiting = [sequence(1, 0.0), sequence(2, 3.0)]
    running = [sequence(3, 2.0, running=True), sequence(4, 1.0, running=True)]

    assert FifoScheduling().order([*waiting, *running], 9.0) == [4, 3, 1, 2]


def test_sequences_that_arrived_together_go_by_id() -> None:
    assert FifoScheduling().order([sequence(2, 1.0), sequence(1, 1.0)], 9.0) == [1, 2]


def test_priority_goes_before_everything_else() -> None:
    assert FifoScheduling().order([sequence(1, 0.0, running=True), sequence(2, 5.0, priority=1)], 9.0) == [2, 1]
