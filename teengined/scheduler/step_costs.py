"""What steps cost, fitted to how long they took. Pure.

    seconds = step + token * tokens + prompt_position * positions of prompts + row_position * positions of rows

A token at position p attends to p + 1 keys, so what it costs grows with the context; and a row that decodes reads keys
that prompt tokens of one chunk share, so a position costs the two differently. Of steps with about as many tokens at
about the same depth the running means are kept: means of what lies on a plane lie on it too. The fit is least squares
of relative errors, drawn towards what is expected where steps do not tell (Levenberg's damping), none below zero. What
is deeper than any step told is guessed badly; nobody asks for it, since what can be restored was computed before.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["StepCosts", "StepLoad", "StepSeconds", "num_attended"]

# Share of the newest measurement in a mean.
_NEWEST = 0.2
# Steps of so many tokens or fewer tell what a step costs before its first token, longer ones what each token adds.
_FEW_TOKENS = 8


def num_attended(start: int, num_tokens: int) -> int:
    """Return how many keys tokens from position `start` on attend to, all together and each to itself too."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2


class StepSeconds(NamedTuple):
    """What the parts of a step cost, in the order of the formula above."""

    step: float
    token: float
    prompt_position: float
    row_position: float


# How strongly each is drawn to what is expected, against all that was measured. Least for a token: what neither depth
# nor a small step explains is a token's. Most for positions: what steps of one depth tell must not be taken for depth.
_DAMPING = StepSeconds(step=1e-4, token=1e-9, prompt_position=1e-2, row_position=1e-2)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """What one step computes."""

    num_rows: int = 0
    """Of sequences that decode, guesses among them."""
    num_prompt_tokens: int = 0
    num_row_positions: int = 0
    """Keys that the rows attend to, as `num_attended` counts them; as the next of prompt tokens."""
    num_prompt_positions: int = 0

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return self.num_rows + self.num_prompt_tokens


@dataclass(slots=True, kw_only=True)
class _Mean:
    """Of steps alike: the factors of the formula, and the seconds."""

    factors: tuple[float, ...]
    seconds: float
    trust: float = _NEWEST
    """0 to 1: what one step told counts less than what many did."""

    def learn(self, factors: Iterable[float], seconds: float) -> None:
        self.factors = tuple(mean + _NEWEST * (new - mean) for mean, new in zip(self.factors, factors, strict=True))
        self.seconds += _NEWEST * (seconds - self.seconds)
        self.trust += _NEWEST * (1 - self.trust)


@dataclass(slots=True, kw_only=True)
class StepCosts:
    """Learns from steps. Its memory is bounded: two means for each power of two of depth."""

    expected: StepSeconds
    _means: dict[tuple[bool, int], _Mean] = field(default_factory=dict[tuple[bool, int], _Mean])
    """By whether tokens were few, and by the binary logarithm of the mean depth."""
    _fitted: StepSeconds | None = None
    """None: something was learned since."""

    def learn(self, load: StepLoad, seconds: float) -> None:
        """Take in how long a step took at its slowest stage; 0: nobody knows."""
        num_tokens = load.num_tokens
        if num_tokens < 1 or seconds <= 0:
            return
        factors = (1.0, num_tokens, load.num_prompt_positions, load.num_row_positions)
        depth = (load.num_prompt_positions + load.num_row_positions) // num_tokens
        kind = (num_tokens <= _FEW_TOKENS, depth.bit_length())
        if kind in self._means:
            self._means[kind].learn(factors, seconds)
        else:
            self._means[kind] = _Mean(factors=factors, seconds=seconds)
        self._fitted = None

    @property
    def seconds(self) -> StepSeconds:
        """What is believed: what was expected, until steps of more than a few tokens were seen."""
        if self._fitted is None:
            tells = any(not is_few for is_few, _ in self._means)
            self._fitted = _fit(tuple(self._means.values()), self.expected) if tells else self.expected
        return self._fitted


def _fit(means: Sequence[_Mean], expected: StepSeconds) -> StepSeconds:
    """Return what explains the means best, with each factor scaled by its own size so that none drowns another."""
    # Of each factor its column: seconds explained relative to those taken, which all together should be 1.
    roots = [math.sqrt(mean.trust) for mean in means]
    shares = zip(*(mean.factors for mean in means), strict=True)
    columns = [
        [root * share / mean.seconds for root, share, mean in zip(roots, column, means, strict=True)]
        for column in shares
    ]
    scales = [math.hypot(*column) or 1.0 for column in columns]
    scaled = [[value / scale for value in column] for column, scale in zip(columns, scales, strict=True)]
    damped = list(zip(_DAMPING, expected, scales, strict=True))
    matrix = [[_dot(left, right) for right in scaled] for left in scaled]
    for i, (damping, _, _) in enumerate(damped):
        matrix[i][i] += damping
    target = [
        _dot(column, roots) + damping * prior * scale
        for column, (damping, prior, scale) in zip(scaled, damped, strict=True)
    ]
    found = _solve_from_zero_up(matrix, target)
    return StepSeconds(*(value / scale for value, scale in zip(found, scales, strict=True)))


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(map(operator.mul, left, right))


def _solve_from_zero_up(matrix: Sequence[Sequence[float]], target: Sequence[float]) -> list[float]:
    """Solve a small positive definite system; what comes out below zero, the lowest first, is 0 and left out."""
    free = list(range(len(target)))
    while free:
        solution = _solve([[matrix[i][j] for j in free] for i in free], [target[i] for i in free])
        lowest = min(range(len(free)), key=solution.__getitem__)
        if solution[lowest] >= 0:
            values = dict(zip(free, solution, strict=True))
            return [values.get(i, 0.0) for i in range(len(target))]
        del free[lowest]
    return [0.0] * len(target)


def _solve(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Solve a positive definite system by elimination, which needs no pivots then."""
    rows = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    for i, row in enumerate(rows):
        for below in rows[i + 1 :]:
            factor = below[i] / row[i]
            below[i:] = [value - factor * above for value, above in zip(below[i:], row[i:], strict=True)]
    solution = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, len(rows)))
        solution[i] = (rows[i][-1] - known) / rows[i][i]
    return solution
