"""How a manifest is spelled in JSON: a line for each unit, and tables of tensors written once for all that share them.

The experts of a layer have the same tensors at the same offsets. Written out, a model of 23,000 experts would have a
manifest of 40 MB that takes seconds to read; with `layouts` it has a fifth of that, and one tuple in memory serves all.

    {"schema": …, …, "layouts": [[tensor, …], …], "units": [{"id": …, "layout": 0, …}, …]}

A unit may also have its `tensors` in place, as the first version of the format had.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from teengined.core.model import ModelManifest, TensorSpec, UnitSpec
from teengined.core.records import RecordError, from_mapping, to_mapping

__all__ = ["manifest_from_table", "manifest_text"]


def manifest_text(manifest: ModelManifest) -> str:
    """Return the JSON text."""
    layouts: dict[tuple[TensorSpec, ...], int] = {}
    by_identity: dict[int, int] = {}  # most units share one tuple, which need not be hashed again
    units: list[str] = []
    for unit in manifest.units:
        index = by_identity.get(id(unit.tensors))
        if index is None:
            index = by_identity[id(unit.tensors)] = layouts.setdefault(unit.tensors, len(layouts))
        fields = to_mapping(replace(unit, tensors=()))
        del fields["tensors"]
        units.append(_line({**fields, "layout": index}))
    fields = to_mapping(replace(manifest, units=()))
    del fields["units"]
    parts = [f" {json.dumps(key)}: {_line(value)}" for key, value in fields.items()]
    parts.append(_list("layouts", [_line(to_mapping(layout)) for layout in layouts]))
    parts.append(_list("units", units))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def manifest_from_table(table: Mapping[str, Any]) -> ModelManifest:
    """Return the manifest that a JSON object spells.

    Raises:
        RecordError: it spells none; names the field.
    """
    fields = dict(table)
    layouts = [
        tuple(from_mapping(TensorSpec, tensor, f"layouts[{index}]") for tensor in _items(layout, f"layouts[{index}]"))
        for index, layout in enumerate(_items(fields.pop("layouts", []), "layouts"))
    ]
    units = [
        _unit(unit, layouts, f"units[{index}]") for index, unit in enumerate(_items(fields.pop("units", []), "units"))
    ]
    return replace(from_mapping(ModelManifest, fields), units=tuple(units))


def _unit(value: object, layouts: list[tuple[TensorSpec, ...]], path: str) -> UnitSpec:
    if not isinstance(value, dict) or "layout" not in value:
        return from_mapping(UnitSpec, value, path)
    fields = cast("dict[str, Any]", value)
    layout = fields.pop("layout")
    if type(layout) is not int or not 0 <= layout < len(layouts):
        raise RecordError(f"{path}.layout", f"{layout!r:.40} is none of the {len(layouts)} layouts")
    if "tensors" in fields:
        raise RecordError(path, "has both tensors and a layout")
    unit = from_mapping(UnitSpec, {**fields, "tensors": ()}, path)
    # Thousands of units name the same few files and precisions.
    file, precision = sys.intern(unit.file), sys.intern(unit.precision)
    return replace(unit, file=file, precision=precision, tensors=layouts[layout])


def _items(value: object, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise RecordError(path, f"expected a list, got {type(value).__name__}")
    return cast("list[Any]", value)


def _line(value: object) -> str:
    return json.dumps(value, separators=(", ", ": "))


def _list(key: str, lines: list[str]) -> str:
    return f' "{key}": [\n  ' + ",\n  ".join(lines) + "\n ]"
