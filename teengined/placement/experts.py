"""Routed experts of a stage: how many bytes a token asks for, how small a cache may be, and how its slots are cut."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from teengined.core.model import ModelManifest
from teengined.core.plan import ExpertCache
from teengined.placement.groups import Group

__all__ = [
    "LEAST_SLOTS",
    "SlotClass",
    "cut_slots",
    "expert_counts",
    "share_per_token",
    "slot_classes",
    "slot_sizes",
    "touched_share",
]

# Of each size of experts: one computes while the next is read.
LEAST_SLOTS = 2
# Sizes that experts of one model come in, by their precisions. Of more, the largest are kept, and smaller experts take
# slots of the smallest of these.
_MAX_SIZES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotClass:
    """Experts that share slots."""

    slot_bytes: int
    num_experts: int

    @property
    def least_slots(self) -> int:
        """Slots that a step can run with."""
        return min(LEAST_SLOTS, self.num_experts)


def share_per_token(manifest: ModelManifest) -> float:
    """Return the share of a layer's experts that one token goes to; 1 where the manifest does not say."""
    if not manifest.num_experts or not manifest.num_experts_per_token:
        return 1.0
    return manifest.num_experts_per_token / manifest.num_experts


def touched_share(share: float, num_tokens: int) -> float:
    """Return the share of experts that any of `num_tokens` goes to, if each chose at random."""
    return 1.0 - (1.0 - share) ** num_tokens


def expert_counts(groups: Iterable[Group]) -> Counter[int]:
    """Return how many routed experts there are of each size in bytes."""
    return Counter(unit.size_bytes for group in groups for unit in group.experts)


def slot_sizes(groups: Iterable[Group]) -> tuple[int, ...]:
    """Return the sizes of slots that a model's experts get, largest first; an expert takes the smallest that fits."""
    return tuple(sorted(expert_counts(groups), reverse=True)[:_MAX_SIZES])


def slot_classes(counts: Mapping[int, int], sizes: Sequence[int]) -> tuple[SlotClass, ...]:
    """Return how many experts, counted by their size, share slots of each of `sizes`."""
    numbers: Counter[int] = Counter()
    for size, count in counts.items():
        numbers[min(slot for slot in sizes if slot >= size)] += count
    return tuple(SlotClass(slot_bytes=slot, num_experts=numbers[slot]) for slot in sizes if numbers[slot])


def cut_slots(classes: Sequence[SlotClass], cache_bytes: int) -> tuple[ExpertCache, ...]:
    """Return as many slots as fit into `cache_bytes`, in proportion to the experts of each class, none below its least.

    `cache_bytes` hold the least at any rate.
    """
    extra = cache_bytes - sum(each.least_slots * each.slot_bytes for each in classes)
    wanted = sum((each.num_experts - each.least_slots) * each.slot_bytes for each in classes)
    share = min(1.0, extra / wanted) if wanted else 0.0
    slots = [each.least_slots + int(share * (each.num_experts - each.least_slots)) for each in classes]
    left = cache_bytes - sum(number * each.slot_bytes for number, each in zip(slots, classes, strict=True))
    for index, each in enumerate(classes):
        more = min(left // each.slot_bytes, each.num_experts - slots[index])
        slots[index] += more
        left -= more * each.slot_bytes
    return tuple(
        ExpertCache(slot_bytes=each.slot_bytes, num_slots=number, num_experts=each.num_experts)
        for number, each in zip(slots, classes, strict=True)
    )
