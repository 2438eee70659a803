"""What `python -m teengined.modelpack convert` does: finds the source and the strategy, and runs the converter."""

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.aliases import ALIASES, fetch_alias
from teengined.modelpack.choices import resolve_precision
from teengined.modelpack.converter import ConversionOptions, convert
from teengined.modelpack.naming import directory_of
from teengined.modelpack.precision_rules import PrecisionRule, parse_precision
from teengined.modelpack.progress import ReportProgress

__all__ = ["ConvertCommand", "default_name", "run_convert"]

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


def run_convert(command: ConvertCommand, registry: PluginRegistry, report: ReportProgress) -> dict[str, Any]:
    """Convert and return the fields of the `done` event.

    Raises:
        TeengineError: whatever went wrong.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("gguf").setLevel(logging.ERROR)
    name = command.name or default_name(command.reference)
    alias = ALIASES.get(command.reference)
    opened = str(fetch_alias(alias, command.cache)) if alias is not None else command.reference
    checkpoint = registry.source_for(opened).open(opened)
    try:
        asked = parse_precision(command.precision)
        strategy = registry.precision(resolve_precision(asked.base, checkpoint.tensors()))
        rules = (*_rules_of_ends(strategy), *asked.rules)
        options = ConversionOptions(
            name=name,
            store=command.store,
            compute_dtype=command.compute_dtype,
            rules=rules,
            strategies={rule.precision: registry.precision(rule.precision) for rule in rules},
            report=report,
            clock=time.monotonic,
        )
        manifest = convert(checkpoint, strategy, options)
    finally:
        checkpoint.close()
    return {
        "name": name,
        "path": str(command.store / directory_of(name)),
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "compute_dtype": manifest.compute_dtype,
        "size_bytes": manifest.size_bytes,
        "num_parameters": manifest.num_parameters,
        "notes": list(manifest.numeric_notes),
    }


def _rules_of_ends(strategy: PrecisionStrategy) -> tuple[PrecisionRule, ...]:
    precision = strategy.ends_precision
    return tuple(PrecisionRule(end, precision) for end in ("embedding", "head")) if precision else ()


def default_name(reference: str) -> str:
    """Return a package name for a reference: an alias or hub id as it is, a path by its last part."""
    if reference in ALIASES:
        return reference
    path = Path(reference).expanduser()
    if not path.exists() and reference.count("/") == 1 and path.suffix != ".gguf":
        return reference.partition("@")[0]
    stem = path.resolve().name
    stem = stem[: -len(".gguf")] if stem.lower().endswith(".gguf") else stem
    return _UNFIT.sub("-", stem).strip("-._") or "model"
