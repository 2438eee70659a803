"""Random weights for a package without a checkpoint, at the speed of a copy.

A precision strategy's encoding costs far more than a disk's write. So one block of rows of each shape is drawn and
encoded as a conversion would, and every content repeats it with its rows turned by another number. Whatever parts a
strategy stores, with whatever shapes and dtypes, they come out as it would have written them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from teengined.modelpack.encoding import ParameterEncoder
from teengined.modelpack.outline import ParameterOutline, Role
from teengined.modelpack.unitfile import PartBytes

__all__ = ["RandomContent"]

# Values of a block: 16 MB in fp32, more than any processor's cache pretends to be a disk.
_BLOCK_VALUES = 4 * 2**20
# Rows of a block are a multiple of this, so that strategies that pack rows in tiles find whole ones.
_ROW_STEP = 64


@dataclass(frozen=True, slots=True)
class _Template:
    """The encoded block of a parameter, and what is left over at its end."""

    num_blocks: int
    num_rows: int
    """Of a block, as the strategy gets it."""
    block: tuple[PartBytes, ...]
    tail: tuple[PartBytes, ...]


class RandomContent:
    """Makes the parts of units. The same seed, shape and number give the same bytes."""

    def __init__(self, encoder: ParameterEncoder, seed: int) -> None:
        """Encode with `encoder`; nothing is drawn yet."""
        self._encoder = encoder
        self._seed = seed
        self._templates: dict[tuple[object, ...], _Template] = {}

    def parts(self, parameters: Sequence[ParameterOutline], number: int) -> Iterator[PartBytes]:
        """Yield the parts of a unit's parameters in order; another `number` is another content.

        The number is written in digits, one for each parameter: by how many rows its blocks are turned. What is left
        of it picks other blocks.
        """
        turns: list[int] = []
        for parameter in parameters:
            rows = _block_rows(parameter)
            turns.append(number % rows)
            number //= rows
        for parameter, turn in zip(parameters, turns, strict=True):
            template = self._template(parameter, number)
            for index, part in enumerate(template.block):
                tail = template.tail[index] if template.tail else None
                yield _filled(replace(part, parameter=parameter.name), tail, template, turn)

    def _template(self, parameter: ParameterOutline, epoch: int) -> _Template:
        key = (parameter.role, parameter.dtype, parameter.shape, _is_gain(parameter), epoch)
        if key not in self._templates:
            self._templates[key] = self._make_template(parameter, epoch)
        return self._templates[key]

    def _make_template(self, parameter: ParameterOutline, epoch: int) -> _Template:
        generator = torch.Generator().manual_seed(self._seed + epoch + prod(parameter.shape) % (1 << 32))
        rows = _block_rows(parameter)
        if not _is_matrix(parameter):
            return _Template(1, rows, self._encoded(parameter, parameter.shape, generator), ())
        total, width = parameter.stored_shape
        left = total % rows
        block = self._encoded(parameter, (rows, width), generator)
        tail = self._encoded(parameter, (left, width), generator) if left else ()
        return _Template(total // rows, rows, block, tail)

    def _encoded(
        self, parameter: ParameterOutline, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[PartBytes, ...]:
        tensor = _draw(parameter, shape, generator)
        if parameter.role is Role.TRANSPOSED:
            tensor = tensor.T
        return tuple(self._encoder.parts(replace(parameter, shape=tuple(tensor.shape)), tensor))


def _is_matrix(parameter: ParameterOutline) -> bool:
    return parameter.role is not Role.PLAIN and len(parameter.shape) == 2


def _is_gain(parameter: ParameterOutline) -> bool:
    """Say whether the parameter is a norm's: ones keep activations as large as they were."""
    return len(parameter.shape) == 1 and parameter.name.endswith("weight")


def _block_rows(parameter: ParameterOutline) -> int:
    if not _is_matrix(parameter):
        return 1
    total, width = parameter.stored_shape
    fitting = max(_ROW_STEP, _BLOCK_VALUES // max(width, 1) // _ROW_STEP * _ROW_STEP)
    return min(total, fitting)


def _draw(parameter: ParameterOutline, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return values that keep activations about as large as they were: matrices of variance 1 / inputs."""
    if len(shape) < 2:
        return torch.ones(shape) if _is_gain(parameter) else torch.zeros(shape)
    return torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5)


def _filled(part: PartBytes, tail: PartBytes | None, template: _Template, turn: int) -> PartBytes:
    """Return the whole part: its block again and again, each time turned by one row more, then the tail."""
    if template.num_blocks == 1 and tail is None and not turn:
        return part
    block = memoryview(part.content).cast("B")
    size, end = len(block), memoryview(tail.content).cast("B") if tail is not None else memoryview(b"")
    content = bytearray(size * template.num_blocks + len(end))
    for index in range(template.num_blocks):
        # A part whose rows are not whole bytes stays as it is: its values are random anyway.
        first = (turn + index) % template.num_rows * (size // template.num_rows) if size % template.num_rows == 0 else 0
        start = index * size
        content[start : start + size - first] = block[first:]
        content[start + size - first : start + size] = block[:first]
    content[size * template.num_blocks :] = end
    leading = part.shape[0] * template.num_blocks + (tail.shape[0] if tail is not None else 0)
    return replace(part, shape=(leading, *part.shape[1:]), content=content)
