"""Guesses are made where steps measure faster with them, and nowhere else, on simulated stages."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from teengined.weights.guess_trial import GuessTrial


@dataclass
class Simulated:
    """How a simulated stage fared."""

    seconds: float = 0.0
    bare_seconds: float = 0.0
    num_guessing: int = 0


def run(
    trial: GuessTrial,
    num_steps: int,
    gain: Callable[[int], float],
    seed: int,
    *,
    rows: Callable[[int], int] = lambda _: 1,
) -> Simulated:
    """Run steps whose seconds vary by a third from one to the next, drift, and are divided by `gain` with guesses."""
    rng, told = random.Random(seed), Simulated()
    for step in range(num_steps):
        bare = rows(step) * (1 + step / num_steps) * rng.uniform(0.8, 1.2)
        seconds = bare / gain(step) if trial.is_guessing else bare
        told.num_guessing += trial.is_guessing
        told.seconds += seconds
        told.bare_seconds += bare
        trial.learn(rows(step), seconds)
    return told


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("gain", [1.15, 1.4])
def test_what_wins_comes_to_be_used_almost_always(seed: int, gain: float) -> None:
    trial = GuessTrial(is_wanted=True)

    told = run(trial, 4000, lambda _: gain, seed)

    assert trial.is_on, f"seed {seed}"
    assert told.seconds < told.bare_seconds / (1 + 0.8 * (gain - 1)), f"seed {seed}"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("gain", [0.6, 0.9, 0.97])
def test_what_loses_is_tried_seldom_and_costs_next_to_nothing(seed: int, gain: float) -> None:
    trial = GuessTrial(is_wanted=True)

    told = run(trial, 20_000, lambda _: gain, seed)

    assert not trial.is_on, f"seed {seed}"
    assert told.num_guessing < 1000, f"seed {seed}"
    assert told.seconds < 1.01 * told.bare_seconds, f"seed {seed}"


def test_what_makes_no_difference_is_mostly_left() -> None:
    guessing = [run(GuessTrial(is_wanted=True), 8000, lambda _: 1.0, seed).num_guessing for seed in range(40)]

    assert sorted(guessing)[len(guessing) // 2] < 800, guessing


@pytest.mark.parametrize("seed", range(10))
def test_the_verdict_follows_when_the_machine_changes(seed: int) -> None:
    trial = GuessTrial(is_wanted=True)

    run(trial, 3000, lambda _: 1.3, seed)
    assert trial.is_on, f"seed {seed}"
    run(trial, 12_000, lambda _: 0.8, seed)

    assert not trial.is_on, f"seed {seed}"


def test_there_is_no_room_taken_and_nothing_guessed_between_trials_that_were_lost() -> None:
    trial = GuessTrial(is_wanted=True)
    run(trial, 64, lambda _: 0.5, 1)
    assert trial.needs_room
    run(trial, 112, lambda _: 0.5, 1)

    assert not trial.needs_room
    assert not trial.is_guessing
    assert run(trial, 500, lambda _: 0.5, 1).num_guessing == 0


def test_steps_of_other_sizes_are_not_compared_and_a_trial_among_them_ends() -> None:
    trial = GuessTrial(is_wanted=True)

    told = run(trial, 2000, lambda _: 1.0, 3, rows=lambda step: 1 if step % 6 < 3 else 12)

    assert not trial.is_on
    assert told.num_guessing <= 3 * 224


@pytest.mark.parametrize("seed", range(10))
def test_a_change_of_size_now_and_then_does_not_mislead(seed: int) -> None:
    trial = GuessTrial(is_wanted=True)

    run(trial, 4000, lambda _: 0.9, seed, rows=lambda step: 1 + 7 * ((step // 37) % 2))

    assert not trial.is_on, f"seed {seed}"


def test_what_is_not_wanted_is_never_tried() -> None:
    trial = GuessTrial(is_wanted=False)

    assert run(trial, 2000, lambda _: 2.0, 1).num_guessing == 0
    assert not trial.needs_room
