"""The controller beside machines of which everything is known: what a row costs, and how often a guess is right."""

import random

import pytest

from teengined.scheduler.speculation import Speculation

NUM_STEPS = 1500


class Machine:
    """A deployment with one class of requests, guesses for each token, and times by rows."""

    def __init__(self, seed: int, *, row_seconds: float, rate: float, num_decoding: int = 1, base: float = 1.0) -> None:
        self.random = random.Random(seed)
        self.row_seconds, self.rate, self.base = row_seconds, rate, base
        self.num_decoding = num_decoding
        self.control = Speculation(max_drafted=16)
        self.seconds = 0.0
        self.num_tokens = 0
        self.drafted: list[int] = []

    def step(self) -> None:
        wanted = [0] * self.num_decoding
        if self.control.may_draft():
            wanted = [self.control.num_wanted("greedy", "lookup", self.num_decoding) for _ in wanted]
        num_rows = self.num_decoding + sum(wanted)
        seconds = (self.base + self.row_seconds * num_rows) * self.random.uniform(0.9, 1.1)
        for number in wanted:
            accepted = 0
            while accepted < number and self.random.random() < self.rate:
                accepted += 1
            if number:
                self.control.learn_draft("greedy", "lookup", number, accepted)
            self.num_tokens += 1 + accepted
        self.control.learn_step(num_rows, seconds, has_drafts=any(wanted))
        self.seconds += seconds
        self.drafted.append(max(wanted))

    def play(self, num_steps: int = NUM_STEPS) -> float:
        """Return how many times faster it was than without guesses."""
        self.seconds, self.num_tokens, self.drafted = 0.0, 0, []
        for _ in range(num_steps):
            self.step()
        bare = self.num_decoding / (self.base + self.row_seconds * self.num_decoding)
        return self.num_tokens / self.seconds / bare


def test_streamed_weights_make_long_guesses_worth_it(seed: int):
    machine = Machine(seed, row_seconds=0.01, rate=0.9)

    assert machine.play() > 4
    assert max(machine.drafted) == 16
    assert 0 in machine.drafted  # A step without now and then keeps the comparison honest.


def test_wrong_guesses_cost_almost_nothing(seed: int):
    machine = Machine(seed, row_seconds=1.0, rate=0.1, base=0.2)

    assert machine.play() > 0.97
    assert sum(map(bool, machine.drafted)) < NUM_STEPS / 40


def test_guesses_that_are_right_cost_more_than_they_bring_where_each_row_costs_a_step(seed: int):
    machine = Machine(seed, row_seconds=1.0, rate=0.8, base=0.05)

    assert machine.play() > 0.97


def test_few_guesses_where_rows_cost_something(seed: int):
    machine = Machine(seed, row_seconds=0.25, rate=0.75)

    assert machine.play() > 1.2
    assert 1 <= sorted(machine.drafted)[NUM_STEPS // 2] <= 4


def test_many_sequences_at_once_make_a_row_dear(seed: int):
    alone = Machine(seed, row_seconds=0.1, rate=0.6)
    crowded = Machine(seed, row_seconds=0.1, rate=0.6, num_decoding=64)

    assert alone.play() > 1.4
    assert crowded.play() > 0.97


@pytest.mark.parametrize("num_decoding", [1, 16])
def test_first_tries_are_as_many_steps_apart_however_many_sequences_guess(num_decoding: int):
    control = Speculation(max_drafted=16)
    control.learn_step(num_decoding, 1.0, has_drafts=False)

    tries = [
        sum(control.num_wanted("greedy", "lookup", num_decoding) > 0 for _ in range(num_decoding)) for _ in range(15)
    ]

    assert max(tries) == 1
    assert sum(tries) == 3


def test_what_changes_is_noticed_in_both_directions(seed: int):
    machine = Machine(seed, row_seconds=0.05, rate=0.9)
    assert machine.play() > 2

    machine.rate = 0.05
    machine.play(200)
    assert not machine.control.describe()[0].is_on
    assert machine.play() > 0.97

    machine.rate = 0.9
    machine.play(500)
    assert machine.control.describe()[0].is_on
    assert machine.play() > 2


def test_weights_that_come_to_rest_in_memory_end_the_guesses(seed: int):
    machine = Machine(seed, row_seconds=0.5, rate=0.7, base=20.0)
    assert machine.play() > 2

    machine.base = 0.05
    machine.play(1000)
    assert machine.play() > 0.97


def test_without_guesses_nothing_is_wanted():
    control = Speculation(max_drafted=0)

    assert not control.may_draft()
    assert control.describe() == ()


def test_classes_are_counted_by_themselves():
    control = Speculation(max_drafted=4)
    control.learn_draft("greedy", "lookup", 4, 3)
    control.learn_draft("sampled", "lookup", 4, 0)

    assert [(item.request_class, item.num_drafted, item.num_accepted) for item in control.describe()] == [
        ("greedy", 4, 3),
        ("sampled", 4, 0),
    ]


@pytest.mark.parametrize("seconds_each", [0.0, 100.0])
def test_time_that_guessing_takes_counts(seconds_each: float):
    control = Speculation(max_drafted=4)
    for num_rows in (1, 5):
        control.learn_step(num_rows, 1.0, has_drafts=num_rows > 1)
    for _ in range(20):
        control.learn_draft("greedy", "draft", 4, 4)

    control.num_wanted("greedy", "draft", 1, seconds_each)

    assert control.describe()[0].is_on == (seconds_each == 0)
