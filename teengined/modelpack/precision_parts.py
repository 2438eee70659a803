"""A model's parts, each stored in one precision: embedding, head, and a layer's attention, mlp and experts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from teengined.modelpack.precision_rules import Address, MatrixPlace

__all__ = ["MatrixPart", "matrix_parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPart:
    """Matrices that are stored alike."""

    name: str
    """A pattern that matches them, where parts later in the order take what theirs match as well."""
    places: tuple[MatrixPlace, ...]


def matrix_parts(places: Sequence[MatrixPlace]) -> tuple[MatrixPart, ...]:
    """Return the parts in order of storage; a layer's experts come after what else is in its mlp."""
    found: dict[str, list[MatrixPlace]] = {}
    for place in places:
        found.setdefault(_part_of(place.addresses[0]), []).append(place)
    ordered = sorted(found.items(), key=lambda item: item[0].endswith(".experts"))
    return tuple(MatrixPart(name=name, places=tuple(held)) for name, held in ordered)


def _part_of(address: Address) -> str:
    length = 4 if address[2:4] == ("mlp", "experts") else 3
    return ".".join(address[:length])
