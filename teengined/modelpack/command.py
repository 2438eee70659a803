"""What `python -m teengined.modelpack convert` and `synth` do: find source and strategy, and run the work."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from teengined.core.errors import RequestError, SourceError
from teengined.core.model import ModelManifest
from teengined.core.quantities import parse_bytes, parse_count
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.source import Checkpoint, ModelSource
from teengined.modelpack.aliases import ALIASES, fetch_alias
from teengined.modelpack.choices import AUTO, resolve_compute_dtype, resolve_precision
from teengined.modelpack.converter import ConversionOptions, convert
from teengined.modelpack.naming import check_name, directory_of
from teengined.modelpack.precision_budget import BudgetRequest, ChosenPrecisions, choose_precisions
from teengined.modelpack.precision_rules import PrecisionRule, parse_precision
from teengined.modelpack.progress import ReportProgress
from teengined.modelpack.references import looks_like_path, unknown_reference
from teengined.modelpack.shapes import KNOWN_SHAPES, config_like
from teengined.modelpack.synthesis import SynthesisOptions, synthesise

__all__ = ["PRECISION_FILE", "ConvertCommand", "SynthCommand", "default_name", "run_convert", "run_synth"]

PRECISION_FILE = "precision.json"
"""Beside the manifest, where precisions were chosen by measured error: the table of what they were chosen from."""

# Offered beside the precision that keeps what the source has.
_NARROWER = ("int8", "int4")
_POLICY = "least-error"
_EXAMPLES = {"budget": "600MB", "parameters": "30B", "distinct": "30GB"}
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+|-{2,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertCommand:
    """The arguments of `convert`."""

    reference: str
    store: Path
    cache: Path
    """Where downloads for aliases are kept."""
    name: str = ""
    """Empty: from the reference."""
    precision: str = "auto"
    """A precision, rules for parts of the model, or both: see `precision_rules`."""
    compute_dtype: str = "auto"
    disks: tuple[Path, ...] = ()
    """As `ConversionOptions.disks`."""
    budget: str = ""
    """With `auto`: the bytes that the weights may take, such as `600MB`; empty: the source's precision is kept."""
    calibration: Path | None = None
    """The text on which errors are measured for a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthCommand:
    """The arguments of `synth`."""

    name: str
    store: Path
    like: str
    parameters: str = ""
    """Such as `1T`; empty: as the shape has."""
    precision: str = "int8"
    compute_dtype: str = "auto"
    distinct: str = ""
    """Such as `30GB`; empty: everything."""
    disks: tuple[Path, ...] = ()
    """As `SynthesisOptions.disks`."""


def run_convert(command: ConvertCommand, registry: PluginRegistry, report: ReportProgress) -> dict[str, Any]:
    """Convert and return the fields of the `done` event.

    Raises:
        TeengineError: whatever went wrong.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("gguf").setLevel(logging.ERROR)
    name = check_name(command.name) if command.name else default_name(command.reference)
    alias = ALIASES.get(command.reference)
    opened = str(fetch_alias(alias, command.cache)) if alias is not None else command.reference
    checkpoint = _source_for(opened, registry).open(opened)
    try:
        asked = parse_precision(command.precision)
        strategy = registry.precision(resolve_precision(asked.base, checkpoint.tensors()))
        chosen = _chosen(command, checkpoint, registry, strategy, report)
        compute_dtype = resolve_compute_dtype(command.compute_dtype, strategy.name)
        rules = (*_rules_of_ends(strategy), *asked.rules) if chosen is None else chosen.rules
        if chosen is not None:
            strategy = registry.precision(chosen.main_precision)
        options = ConversionOptions(
            name=name,
            store=command.store,
            compute_dtype=compute_dtype,
            disks=command.disks,
            rules=rules,
            strategies={rule.precision: registry.precision(rule.precision) for rule in rules},
            attachments={} if chosen is None else {PRECISION_FILE: chosen.as_json()},
            report=report,
            clock=time.monotonic,
        )
        manifest = convert(checkpoint, strategy, options)
    finally:
        checkpoint.close()
    return {**_told(manifest, command.store), "precisions": [] if chosen is None else list(chosen.table)}


def run_synth(command: SynthCommand, registry: PluginRegistry, report: ReportProgress) -> dict[str, Any]:
    """Write a synthetic package and return the fields of the `done` event.

    Raises:
        TeengineError: whatever went wrong.
    """
    transformers_logging.set_verbosity_error()
    precision = "bf16" if command.precision == AUTO else command.precision
    num_parameters = _number("parameters", command.parameters, parse_count)
    distinct_bytes = _number("distinct", command.distinct, parse_bytes)
    strategy = registry.precision(precision)
    options = SynthesisOptions(
        name=command.name,
        store=command.store,
        like=command.like if command.like in KNOWN_SHAPES else Path(command.like).name,
        num_parameters=num_parameters,
        distinct_bytes=distinct_bytes,
        ends=registry.precision(strategy.ends_precision) if strategy.ends_precision else None,
        compute_dtype=command.compute_dtype,
        disks=command.disks,
        report=report,
        clock=time.monotonic,
    )
    manifest = synthesise(config_like(command.like), strategy, options)
    distinct_share = manifest.stored_bytes / manifest.size_bytes
    return {**_told(manifest, command.store), "distinct_share": distinct_share}


def _source_for(reference: str, registry: PluginRegistry) -> ModelSource:
    if not reference.strip():  # Which is the current directory, and nobody means that.
        raise unknown_reference(reference)
    try:
        return registry.source_for(reference)
    except SourceError as error:
        raise unknown_reference(reference) from error


def _number(option: str, text: str, parse: Callable[[str], int]) -> int | None:
    try:
        return parse(text) if text else None
    except ValueError as error:
        raise RequestError(f"--{option}: {error}", hint=f"such as --{option} {_EXAMPLES[option]}") from error


def _told(manifest: ModelManifest, store: Path) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "path": str(store / directory_of(manifest.name)),
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "compute_dtype": manifest.compute_dtype,
        "size_bytes": manifest.size_bytes,
        "stored_bytes": manifest.stored_bytes,
        "num_parameters": manifest.num_parameters,
        "notes": list(manifest.numeric_notes),
    }


def _chosen(
    command: ConvertCommand,
    checkpoint: Checkpoint,
    registry: PluginRegistry,
    widest: PrecisionStrategy,
    report: ReportProgress,
) -> ChosenPrecisions | None:
    """Return what is chosen by measured error; None where no budget is given."""
    if not command.budget:
        if command.calibration is not None:
            raise RequestError("a calibration text without a budget", hint="add --budget SIZE, such as --budget 600MB")
        return None
    asked = parse_precision(command.precision)
    if asked.base != AUTO or asked.rules:
        raise RequestError(
            f"--budget chooses the precision of every part, so {command.precision!r:.80} cannot be named beside it",
            hint="leave --precision out, or leave --budget out",
        )
    if command.calibration is None:
        raise RequestError("--budget needs a text to measure errors on", hint="name a file: --calibration FILE")
    names = dict.fromkeys((widest.name, *_NARROWER))
    request = BudgetRequest(
        budget_bytes=_number("budget", command.budget, parse_bytes) or 0,
        calibration_file=command.calibration,
        strategies=[registry.precision(name) for name in names],
        policy=registry.precision_policies()[_POLICY],
        report=report,
        clock=time.monotonic,
    )
    return choose_precisions(checkpoint, resolve_compute_dtype(command.compute_dtype, widest.name), request)


def _rules_of_ends(strategy: PrecisionStrategy) -> tuple[PrecisionRule, ...]:
    precision = strategy.ends_precision
    return tuple(PrecisionRule(end, precision) for end in ("embedding", "head")) if precision else ()


def default_name(reference: str) -> str:
    """Return a package name for a reference: an alias or hub id as it is, a path by its last part."""
    if reference in ALIASES:
        return reference
    path = Path(reference).expanduser()
    if not path.exists() and "/" in reference and not looks_like_path(reference):
        return reference.partition("@")[0]
    stem = path.resolve().name
    stem = stem[: -len(".gguf")] if stem.lower().endswith(".gguf") else stem
    return _UNFIT.sub("-", stem).strip("-._") or "model"
