"""The addresses of a model's matrices, by which rules of precision name them: the same words for every architecture."""

import re
from collections.abc import Iterator

from teengined.modelpack.outline import ModelOutline, ParameterOutline, Role
from teengined.modelpack.precision_rules import Address, MatrixPlace

__all__ = ["matrix_places"]

_ATTENTION = re.compile(r"attn|attention")
_FEED_FORWARD = re.compile(r"mlp|feed_forward|ffn|moe|^fc\d*$")


def matrix_places(outline: ModelOutline) -> tuple[MatrixPlace, ...]:
    """Return every matrix that goes through a precision strategy, each expert's for itself, in order of storage."""
    return tuple(_places(outline))


def _places(outline: ModelOutline) -> Iterator[MatrixPlace]:
    shared = set(outline.tied.values())
    for parameter in filter(_is_matrix, outline.embedding):
        # Where the head is the embedding, one matrix answers to both names.
        names: list[Address] = [("embedding",), ("head",)] if parameter.name in shared else [("embedding",)]
        yield MatrixPlace(parameter=parameter.name, expert=None, addresses=tuple(names))
    for layer, parameters in enumerate(outline.layers):
        for parameter in filter(_is_matrix, parameters):
            yield from _of_layer(layer, parameter)
    for parameter in filter(_is_matrix, outline.head):
        yield MatrixPlace(parameter=parameter.name, expert=None, addresses=(("head",),))


def _of_layer(layer: int, parameter: ParameterOutline) -> Iterator[MatrixPlace]:
    start: Address = ("layers", str(layer))
    if parameter.num_experts:
        for expert in range(parameter.num_experts):
            address = (*start, "mlp", "experts", str(expert))
            yield MatrixPlace(parameter=parameter.name, expert=expert, addresses=(address,))
        return
    path = parameter.name.split(f".{layer}.", 1)[1].removesuffix(".weight").split(".")
    yield MatrixPlace(parameter=parameter.name, expert=None, addresses=((*start, *_words(path)), (*start, *path)))


def _words(path: list[str]) -> list[str]:
    """Return the path within a layer with our word for its first segment."""
    first = path[0]
    if _ATTENTION.search(first):
        return ["attention", *path[1:]]
    if _FEED_FORWARD.search(first):
        return ["mlp", *(path[1:] or path)]
    return path


def _is_matrix(parameter: ParameterOutline) -> bool:
    return parameter.role is not Role.PLAIN
