"""One comparison: the tokens of a placement against the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ParityRow", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """Whether every token was the same, and where it first was not."""

    model: str
    placement: str
    num_prompts: int
    num_tokens: int
    difference: str
    """Empty where all tokens are the same."""

    @property
    def same(self) -> bool:
        """Whether all tokens are those of the reference."""
        return not self.difference


def compare(model: str, placement: str, ours: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> ParityRow:
    """Return the row for answers to the same prompts."""
    difference = ""
    for index, (answer, expected) in enumerate(zip(ours, reference, strict=True)):
        if list(answer) != list(expected) and not difference:
            at = next((i for i, pair in enumerate(zip(answer, expected, strict=False)) if pair[0] != pair[1]), -1)
            difference = f"prompt {index}, token {at if at >= 0 else min(len(answer), len(expected))}"
    return ParityRow(
        model=model,
        placement=placement,
        num_prompts=len(reference),
        num_tokens=sum(map(len, reference)),
        difference=difference,
    )
