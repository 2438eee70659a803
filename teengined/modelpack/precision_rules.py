"""Which part of a model is stored in which precision: rules such as `layers.*.mlp=int4`, the last that matches wins.

Matrices have addresses: `embedding`, `head`, `layers.3.attention.q_proj`, `layers.3.mlp.down_proj`, and all of one
expert `layers.3.mlp.experts.7`. A pattern matches an address that begins with its segments; a segment is a name, `*`, a
number, or a range of numbers such as `0-3`. `attention`, `mlp` and `experts` alone mean those of all layers. Pure.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from teengined.core.errors import RequestError

__all__ = ["Address", "MatrixPlace", "PrecisionRequest", "PrecisionRule", "parse_precision", "resolve_rules"]

Address = tuple[str, ...]
_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
_LAYER_PARTS = ("attention", "mlp", "experts")
# More rules than matrices of a large model, and few enough to match each with each.
_MAX_RULES = 1000


@dataclass(frozen=True, slots=True)
class PrecisionRule:
    """Matrices whose address matches `pattern` are stored in `precision`."""

    pattern: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionRequest:
    """What `--precision` asks for: a precision for all, and rules for parts."""

    base: str = "auto"
    rules: tuple[PrecisionRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPlace:
    """A stored matrix, or one expert's slice of one, and the addresses that it answers to."""

    parameter: str
    expert: int | None
    addresses: tuple[Address, ...]


def parse_precision(text: str) -> PrecisionRequest:
    """Return what a text such as `int4,layers.0-3=bf16,head=int8` asks for; without a plain name the base is `auto`.

    Raises:
        RequestError: two plain names, or a rule without a pattern or a precision.
    """
    bases: list[str] = []
    rules: list[PrecisionRule] = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        pattern, equals, precision = (part.strip() for part in item.partition("="))
        if not equals:
            bases.append(item)
        elif pattern and precision:
            rules.append(PrecisionRule(pattern, precision))
        else:
            raise RequestError(f"{item!r:.80} is no rule", hint="write PATTERN=PRECISION, such as layers.*.mlp=int4")
    if len(bases) > 1:
        raise RequestError(
            f"two precisions for the whole model: {bases[0]!r:.40} and {bases[1]!r:.40}",
            hint="name one, and the parts that differ as PATTERN=PRECISION",
        )
    if len(rules) > _MAX_RULES:
        raise RequestError(f"{len(rules)} rules of precision, at most {_MAX_RULES} are taken", hint="use patterns")
    return PrecisionRequest(base=bases[0] if bases else "auto", rules=tuple(rules))


def resolve_rules(
    places: Sequence[MatrixPlace], rules: Iterable[PrecisionRule]
) -> Mapping[tuple[str, int | None], str]:
    """Return the precision of each matrix that a rule matches, by parameter and expert.

    Raises:
        RequestError: a rule matches no matrix; names what there is.
    """
    chosen: dict[tuple[str, int | None], str] = {}
    for rule in rules:
        pattern = _segments(rule.pattern)
        matched = [place for place in places if any(_matches(pattern, address) for address in place.addresses)]
        if not matched:
            raise _unmatched(rule, places)
        chosen |= {(place.parameter, place.expert): rule.precision for place in matched}
    return chosen


def _segments(pattern: str) -> Address:
    segments = tuple(pattern.split("."))
    if segments[0] in _LAYER_PARTS:
        segments = ("layers", "*", *segments)
    if segments[0] == "layers" and segments[2:3] == ("experts",):
        segments = (*segments[:2], "mlp", *segments[2:])
    return segments


def _matches(pattern: Address, address: Address) -> bool:
    if len(pattern) > len(address):
        return False
    return all(_matches_segment(wanted, found) for wanted, found in zip(pattern, address, strict=False))


def _matches_segment(wanted: str, found: str) -> bool:
    limits = _RANGE.fullmatch(wanted)
    if limits and found.isdecimal():
        return int(limits[1]) <= int(found) <= int(limits[2])
    return fnmatch.fnmatchcase(found, wanted)


def _unmatched(rule: PrecisionRule, places: Sequence[MatrixPlace]) -> RequestError:
    addresses = [address for place in places for address in place.addresses]
    general = dict.fromkeys(
        ".".join("*" if segment.isdecimal() else segment for segment in address[:length])
        for address in addresses
        for length in range(1, len(address) + 1)
    )
    asked = ".".join("*" if _RANGE.fullmatch(part) or part.isdecimal() else part for part in _segments(rule.pattern))
    num_layers = 1 + max((int(address[1]) for address in addresses if address[0] == "layers"), default=-1)
    if asked in general:
        hint = f"layers are 0 … {num_layers - 1}" if num_layers else ""
    else:
        near = difflib.get_close_matches(asked, list(general), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list(general)[:8])} …"
    return RequestError(f"the rule {rule.pattern!r:.80} matches no matrix of this model", hint=hint)
