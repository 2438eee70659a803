"""`--precision auto --budget SIZE`: the precision of each part by measured error, within a number of bytes."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from teengined.core.errors import RequestError
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.precision_policy import PrecisionOption, PrecisionPart, PrecisionPolicy
from teengined.interfaces.source import Checkpoint
from teengined.modelpack.assembly import TensorProvider, estimate_bytes, plan_files
from teengined.modelpack.binding import bind
from teengined.modelpack.encoding import ParameterEncoder
from teengined.modelpack.matrix_places import matrix_places
from teengined.modelpack.outline import ModelOutline
from teengined.modelpack.precision_parts import MatrixPart, matrix_parts
from teengined.modelpack.precision_rules import PrecisionRule
from teengined.modelpack.progress import ProgressMeter, ReportProgress
from teengined.modelpack.sensitivity import calibration_rows, measured_errors

__all__ = ["BudgetRequest", "ChosenPrecisions", "choose_precisions"]

# Of a calibration text, more than enough for the tokens that are used.
_MAX_TEXT_BYTES = 1 << 20
_MIN_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    """What to choose, and from what."""

    budget_bytes: int
    calibration_file: Path
    strategies: Sequence[PrecisionStrategy]
    """From the one that keeps most to the one that takes least."""
    policy: PrecisionPolicy
    report: ReportProgress
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPrecisions:
    """A rule for each part, and what they were chosen from."""

    rules: tuple[PrecisionRule, ...]
    table: tuple[Mapping[str, Any], ...]
    """For each part: `part`, `precision`, `size_bytes`, `error`, and `options` with the same of all precisions."""

    @property
    def main_precision(self) -> str:
        """The precision of most weights."""
        weights: Counter[str] = Counter()
        for row in self.table:
            weights[row["precision"]] += max(option["size_bytes"] for option in row["options"].values())
        return max(weights, key=lambda name: weights[name])

    def as_json(self) -> str:
        """Return the table as it is kept beside the manifest."""
        return json.dumps({"parts": list(self.table)}, indent=1) + "\n"


def choose_precisions(checkpoint: Checkpoint, compute_dtype: str, request: BudgetRequest) -> ChosenPrecisions:
    """Measure each part's error in each precision on the text, and let the policy choose.

    Raises:
        RequestError: the text cannot be read or is too short.
        DoesNotFit: the budget is too small for any choice, or the model for this machine's memory.
        SourceError: as at conversion.
    """
    binding = bind(checkpoint, compute_dtype)
    outline = binding.outline
    parts = matrix_parts(matrix_places(outline))
    rows = calibration_rows(_token_ids(checkpoint, request.calibration_file))
    provider = TensorProvider(outline=outline, derivations=binding.derivations, read=checkpoint.read)
    sizes = _sizes(outline, parts, request.strategies)
    meter = ProgressMeter("calibrate", sum(sizes.values()), report=request.report, clock=request.clock)
    errors: dict[tuple[str, str], float] = {}
    for part, precision, error in measured_errors(provider, parts, request.strategies, rows):
        errors[part, precision] = error
        meter.advance(sizes[part, precision])
    offered = [_offered(part.name, request.strategies, sizes, errors) for part in parts]
    fixed_bytes = _fixed_bytes(outline, request.strategies[0])
    chosen = request.policy.choose(offered, request.budget_bytes - fixed_bytes)
    return ChosenPrecisions(
        rules=tuple(PrecisionRule(part.name, option.precision) for part, option in zip(parts, chosen, strict=True)),
        table=tuple(_row(part, option) for part, option in zip(offered, chosen, strict=True)),
    )


def _token_ids(checkpoint: Checkpoint, file: Path) -> list[int]:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_TEXT_BYTES).decode("utf-8", errors="ignore")
    except OSError as error:
        raise RequestError(f"the calibration text {file} cannot be read: {error.strerror}") from error
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.write_tokenizer(Path(directory))
        tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text).ids
    if len(ids) < _MIN_TOKENS:
        raise RequestError(
            f"the calibration text {file} has {len(ids)} tokens, at least {_MIN_TOKENS} are needed",
            hint="give some pages of text like that which the model will read",
        )
    return ids


def _sizes(
    outline: ModelOutline, parts: Sequence[MatrixPart], strategies: Sequence[PrecisionStrategy]
) -> dict[tuple[str, str], int]:
    shapes = {parameter.name: parameter.stored_shape for parameter in outline.parameters()}
    return {
        (part.name, strategy.name): sum(strategy.stored_bytes(shapes[place.parameter]) for place in part.places)
        for part in parts
        for strategy in strategies
    }


def _offered(
    part: str,
    strategies: Sequence[PrecisionStrategy],
    sizes: Mapping[tuple[str, str], int],
    errors: Mapping[tuple[str, str], float],
) -> PrecisionPart:
    options = (
        PrecisionOption(precision=one.name, size_bytes=sizes[part, one.name], error=errors[part, one.name])
        for one in strategies
    )
    return PrecisionPart(name=part, options=tuple(options))


def _fixed_bytes(outline: ModelOutline, strategy: PrecisionStrategy) -> int:
    """Return what the package takes beside its matrices: vectors, alignment and headers, counted generously."""
    encoder = ParameterEncoder(strategy)
    whole = sum(estimate_bytes(file, encoder) for file in plan_files(outline))
    places = matrix_places(outline)
    shapes = {parameter.name: parameter.stored_shape for parameter in outline.parameters()}
    return whole - sum(strategy.stored_bytes(shapes[place.parameter]) for place in places)


def _row(part: PrecisionPart, chosen: PrecisionOption) -> Mapping[str, Any]:
    return {
        "part": part.name,
        "precision": chosen.precision,
        "size_bytes": chosen.size_bytes,
        "error": chosen.error,
        "options": {
            option.precision: {"size_bytes": option.size_bytes, "error": option.error} for option in part.options
        },
    }
