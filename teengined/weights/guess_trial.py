"""Whether to read experts ahead on a guess: only while steps measure faster with it than without. Pure.

Steps are run by windows, some with guesses and some without, in turns of with-without-without-with, so that neither
profits from what drifts. Each pair of windows gives a ratio of medians; guessing is on where the middle ratio says that
it wins and most of the pairs agree. A trial is repeated after a pause, which doubles for as long as the verdict stays:
texts, batches and disks change. What is cached does not depend on guesses, so windows do not disturb each other.
"""

import statistics

__all__ = ["GuessTrial"]

# Steps until the first trial: a cache that fills is no measure of one that is full.
_WARM_UP_STEPS = 64
_WINDOW_STEPS, _NUM_PAIRS = 8, 7
# What guessing must win to begin, and may lose before it ends; and in how many of the pairs it must have won.
_BEGIN_GAIN, _END_GAIN, _LEAST_WON = 1.03, 1.0, 5
_FIRST_PAUSE, _LONGEST_PAUSE = 512, 16384
# Of a trial. A window begins anew where the number of rows changes, which may go on for ever.
_MOST_STEPS = 2 * 2 * _WINDOW_STEPS * _NUM_PAIRS


class GuessTrial:
    """Decides for one stage. Learns from each step that is small enough to guess in."""

    def __init__(self, *, is_wanted: bool) -> None:
        """Begin without guesses; where not `is_wanted`, there are none ever."""
        self._is_wanted = is_wanted
        self.is_on = False
        """Whether guessing measured faster, when it was last tried."""
        self.is_tried = False
        """Whether a trial is under way."""
        self._num_left = _WARM_UP_STEPS
        self._pause = _FIRST_PAUSE
        self._num_steps = 0
        self._size = 0
        self._window: list[float] = []
        self._medians: list[float] = []

    @property
    def is_guessing(self) -> bool:
        """Say whether the next step is one with guesses."""
        return self._window_has_guesses(len(self._medians)) if self.is_tried else self.is_on

    @property
    def needs_room(self) -> bool:
        """Say whether there are steps with guesses now, so that it takes memory for what is guessed."""
        return self.is_tried or self.is_on

    def learn(self, num_rows: int, seconds: float) -> None:
        """Take in a step. Those of about as many rows are compared with each other."""
        if not self._is_wanted:
            return
        if self.is_tried:
            self._measure(num_rows.bit_length(), seconds)
            return
        self._num_left -= 1
        if self._num_left <= 0:
            self._begin()

    def _begin(self) -> None:
        self.is_tried = True
        self._num_steps = 0
        self._window, self._medians = [], []

    def _measure(self, size: int, seconds: float) -> None:
        self._num_steps += 1
        if self._num_steps > _MOST_STEPS:
            self._end(is_on=False)
            return
        if size != self._size:
            # A window without its partner has nothing to be compared with.
            self._size, self._window = size, []
            del self._medians[len(self._medians) // 2 * 2 :]
        self._window.append(seconds)
        if len(self._window) < _WINDOW_STEPS:
            return
        self._medians.append(statistics.median(self._window))
        self._window = []
        if len(self._medians) == 2 * _NUM_PAIRS:
            self._end(is_on=self._is_worth_it())

    def _is_worth_it(self) -> bool:
        ratios: list[float] = []
        for first in range(0, len(self._medians), 2):
            one, other = self._medians[first : first + 2]
            guessed, bare = (one, other) if self._window_has_guesses(first) else (other, one)
            ratios.append(bare / guessed if guessed > 0 else 1.0)
        num_won = sum(ratio > 1 for ratio in ratios)
        gain = statistics.median(ratios)
        return num_won >= _LEAST_WON and gain >= (_END_GAIN if self.is_on else _BEGIN_GAIN)

    def _end(self, *, is_on: bool) -> None:
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause) if is_on == self.is_on else _FIRST_PAUSE
        self.is_on, self.is_tried, self._num_left = is_on, False, self._pause

    @staticmethod
    def _window_has_guesses(index: int) -> bool:
        return index % 4 in (0, 3)
