"""When to guess tokens ahead: only while it measures positive, for each class of requests by itself.

A step that verifies `k` guesses for each of `B` decoding sequences has `B (k + 1)` rows. If a guess is right with
probability `p` whenever those before it were, it brings `1 + p + … + p^k` tokens for each. So guessing makes a
deployment faster by

    gain(k) = (1 + p + … + p^k) * seconds(B) / seconds(B (k + 1))

(Leviathan and others, "Fast inference from transformers via speculative decoding", 2023, with measured times). `p` is
counted for each class and source, the times are those of the deployment's own steps. Guessing begins above
`_BEGIN_GAIN` and ends below 1. While it is off, a guess is tried now and then, ever more seldom: texts and loads
change. While it is on, a step goes without now and then, so that the time it is compared with stays a measured one.
"""

from dataclasses import dataclass, field

from teengined.scheduler.step_times import StepTimes

__all__ = ["Drafted", "Speculation"]

_BEGIN_GAIN, _END_GAIN = 1.1, 1.0
# Guesses of a step by which times and rates are found out, and the share of the time that may be lost by it.
_NUM_TRIED = 4
_TRIED_SHARE = 0.01
# So many are tried one soon after the other: the first step of its size may do what is done only once. The pause is for
# each sequence, since many make many guesses a step and have less to win.
_NUM_FIRST, _FIRST_PAUSE, _LONGEST_PAUSE = 3, 4, 1024
_BARE_EVERY = 24
# Of what was counted before, with each step; the last ten or so count.
_KEPT = 0.9
# What is believed before anything was counted: guesses are tried at once.
_FIRST_ACCEPTED, _FIRST_REFUSED = 3.0, 1.0
_HIGHEST_RATE = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """What became of the guesses of one class from one source, since the deployment was opened."""

    request_class: str
    source: str
    is_on: bool
    num_drafted: int
    num_accepted: int


@dataclass(slots=True)
class _Record:
    """One class's guesses from one source."""

    accepted: float = _FIRST_ACCEPTED
    refused: float = _FIRST_REFUSED
    is_on: bool = False
    num_tries: int = 0
    num_passed: int = _LONGEST_PAUSE
    """Guesses that were left unused since the last one was not."""
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def rate(self) -> float:
        return min(_HIGHEST_RATE, self.accepted / max(1e-9, self.accepted + self.refused))

    def try_now(self, pause: float, num_decoding: int) -> bool:
        """Say whether it is time to try, after a pause of so many guesses, and count."""
        if self.num_passed < (pause if self.num_tries >= _NUM_FIRST else min(pause, _FIRST_PAUSE * num_decoding)):
            self.num_passed += 1
            return False
        self.num_passed, self.num_tries = 0, self.num_tries + 1
        return True


@dataclass(slots=True, kw_only=True)
class Speculation:
    """Decides for one deployment. Learns from finished steps."""

    max_drafted: int
    """Guesses for one sequence in one step; 0: none ever."""
    times: StepTimes = field(default_factory=StepTimes)
    _records: dict[tuple[str, str], _Record] = field(default_factory=dict[tuple[str, str], _Record])
    _num_since_bare: int = 0

    def may_draft(self) -> bool:
        """Say whether the next step may have guesses at all: now and then one goes without."""
        return self.max_drafted > 0 and self._num_since_bare < _BARE_EVERY

    def num_wanted(self, request_class: str, source: str, num_decoding: int, seconds_each: float = 0.0) -> int:
        """Return how many guesses a sequence of this class should have in a step of `num_decoding` sequences.

        To be asked where there are guesses: it counts how often they were left unused. `seconds_each` is what a guess
        takes before the step can begin.
        """
        record = self._records.setdefault((request_class, source), _Record())
        bare_seconds = self.times.seconds(num_decoding)
        if bare_seconds is None:  # Nothing to compare with, until a step went without.
            return 0
        gain, num_best = self._best(record.rate, num_decoding, bare_seconds, seconds_each)
        record.is_on = gain >= (_END_GAIN if record.is_on else _BEGIN_GAIN)
        if record.is_on:
            record.num_passed = 0
            return num_best
        return (
            min(_NUM_TRIED, self.max_drafted)
            if record.try_now(self._pause(num_decoding, bare_seconds, seconds_each), num_decoding)
            else 0
        )

    def is_on(self, request_class: str, source: str) -> bool:
        """Whether guesses of this class from this source make the deployment faster, as far as is known."""
        record = self._records.get((request_class, source))
        return record is not None and record.is_on

    def learn_step(self, num_rows: int, seconds: float, *, has_drafts: bool) -> None:
        """Take in how long a step took in which nothing ran but decoding sequences and their guesses."""
        self._num_since_bare = self._num_since_bare + 1 if has_drafts else 0
        self.times.learn(num_rows, seconds)

    def learn_draft(self, request_class: str, source: str, num_drafted: int, num_accepted: int) -> None:
        """Take in what became of a sequence's guesses in a step."""
        record = self._records.setdefault((request_class, source), _Record())
        record.accepted = record.accepted * _KEPT + num_accepted
        record.refused = record.refused * _KEPT + (num_accepted < num_drafted)
        record.num_drafted += num_drafted
        record.num_accepted += num_accepted

    def describe(self) -> tuple[Drafted, ...]:
        """Return the classes that had something to guess, by name."""
        return tuple(
            Drafted(
                request_class=request_class,
                source=source,
                is_on=record.is_on,
                num_drafted=record.num_drafted,
                num_accepted=record.num_accepted,
            )
            for (request_class, source), record in sorted(self._records.items())
        )

    def _pause(self, num_decoding: int, bare_seconds: float, seconds_each: float) -> float:
        """Return after how many unused guesses the next may be tried, so that tries take little of the time."""
        seconds = self.times.seconds(num_decoding + _NUM_TRIED)
        num_lost_tokens = float(_NUM_TRIED)  # As if each row took as long as one that decodes.
        if seconds is not None:
            num_lost_tokens = (seconds - bare_seconds) / bare_seconds * num_decoding
        num_lost_tokens += seconds_each * _NUM_TRIED / bare_seconds * num_decoding
        return min(_LONGEST_PAUSE, max(_FIRST_PAUSE, num_lost_tokens / _TRIED_SHARE))

    def _best(self, rate: float, num_decoding: int, bare_seconds: float, seconds_each: float) -> tuple[float, int]:
        """Return the largest gain among numbers of guesses, and that number; 0 where nothing is known."""
        best, num_drafted = (0.0, 0), 1
        while num_drafted <= self.max_drafted:
            seconds = self.times.seconds(num_decoding * (num_drafted + 1))
            if seconds is None:
                break
            num_tokens = (1 - rate ** (num_drafted + 1)) / (1 - rate)
            best = max(best, (num_tokens * bare_seconds / (seconds + seconds_each * num_drafted), num_drafted))
            num_drafted = _next_number(num_drafted, self.max_drafted)
        return best


def _next_number(num_drafted: int, most: int) -> int:
    """Return the next number to look at: powers of two, and the largest."""
    return most if num_drafted < most < 2 * num_drafted else 2 * num_drafted
