"""Slots of the expert cache: which expert lies where, and who moves where when a layer asks for its experts. Pure.

A request is decided as a whole before anything is read, so that what is read does not depend on how fast the disk is,
and a simulation of the same requests moves the same bytes.
"""

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass

from teengined.weights.eviction_policy import EvictionPolicy, ExpertKey

__all__ = ["ExpertSlots", "Visit"]

# Experts that a request which needs more than there are slots reads ahead of the one that computes.
_READ_AHEAD = 8


@dataclass(eq=False, slots=True, kw_only=True)
class Visit:
    """One expert's turn in a request."""

    key: ExpertKey
    slot: int
    is_miss: bool
    after: "Visit | None" = None
    """Of the same request: its slot is taken over, so that it must have been computed first."""


class ExpertSlots:
    """Gives slots to experts; the policy says who leaves. One thread."""

    def __init__(self, policy: EvictionPolicy, num_slots: int) -> None:
        """Begin with every slot free."""
        if num_slots < 1:
            raise ValueError(f"an expert cache needs at least 1 slot, not {num_slots}")
        self.policy = policy
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[ExpertKey, int] = {}

    def __contains__(self, key: object) -> bool:
        """Say whether an expert has a slot."""
        return key in self._slots

    def __len__(self) -> int:
        """Return how many slots are taken."""
        return len(self._slots)

    @property
    def held(self) -> Collection[ExpertKey]:
        """Return what has a slot."""
        return self._slots.keys()

    def slot_of(self, key: ExpertKey) -> int:
        """Return the slot of an expert that has one."""
        return self._slots[key]

    def visit(self, keys: Iterable[ExpertKey], *, in_order: bool) -> list[Visit]:
        """Return the turns of a request's experts, in the order in which they are to be computed.

        Held ones come first, unless `in_order` wants the order of `keys`. What the request needs later is not given
        up for what it needs now, as far as there are slots.
        """
        self.policy.next_request()
        order = list(keys)
        if not in_order:
            order.sort(key=lambda key: key not in self._slots)
        for key in order:
            if key in self._slots:
                self.policy.touch(key)
        if len(order) <= self.num_slots:
            return [self._turn(key, frozenset(order)) for key in order]
        return self._pass_through(order)

    def take(self, key: ExpertKey, protected: Container[ExpertKey]) -> Visit | None:
        """Return the turn of one expert; None where it needs a slot and all are of `protected`."""
        if key in self._slots:
            return Visit(key=key, slot=self._slots[key], is_miss=False)
        if not self._free:
            victim = self.policy.victim(protected)
            if victim is None:
                return None
            self.drop(victim)
        self.policy.touch(key)
        self.policy.add(key)
        slot = self._slots[key] = self._free.pop()
        return Visit(key=key, slot=slot, is_miss=True)

    def access(self, key: ExpertKey, protected: Container[ExpertKey]) -> Visit | None:
        """Return the turn of a request for one expert, as `take`."""
        if key in self._slots:
            self.policy.touch(key)
        visit = self.take(key, protected)
        if visit is not None:
            self.policy.next_request()
        return visit

    def drop(self, key: ExpertKey) -> None:
        """Free an expert's slot: it gives way, or could not be read."""
        self._free.append(self._slots.pop(key))
        self.policy.remove(key)

    def lend(self, num_slots: int, protected: Container[ExpertKey] = ()) -> list[int]:
        """Hold fewer from now on, and return the slots that are not ours until `take_back`.

        There may be fewer than `num_slots`, where all others are of `protected`.
        """
        while len(self._free) < num_slots and (victim := self.policy.victim(protected)) is not None:
            self.drop(victim)
        lent = [self._free.pop() for _ in range(min(num_slots, len(self._free)))]
        self.num_slots -= len(lent)
        return lent

    def take_back(self, slots: Collection[int]) -> None:
        """Have slots that were lent."""
        self._free.extend(slots)
        self.num_slots += len(slots)

    def adopt(self, policy: EvictionPolicy) -> None:
        """Let a policy that knows of other keys decide from now on, over what is held here."""
        self.policy = policy.holding(self._slots)

    def _turn(self, key: ExpertKey, protected: Container[ExpertKey]) -> Visit:
        visit = self.take(key, protected)
        assert visit is not None, "a request that fits leaves a slot to each of its experts"
        return visit

    def _pass_through(self, order: Sequence[ExpertKey]) -> list[Visit]:
        """Plan a request of more experts than slots: each is read once, computed and may be given up again."""
        window = min(self.num_slots, _READ_AHEAD)
        later = dict.fromkeys(order)
        recent: dict[ExpertKey, Visit] = {}
        in_slot: dict[int, Visit] = {}
        visits: list[Visit] = []
        for key in order:
            del later[key]
            visit = self.take(key, _Either(later, recent))
            if visit is None:
                self.drop(self._least_near(later, recent))
                visit = self._turn(key, _Either(later, recent))
            visit.after = in_slot.get(visit.slot)
            in_slot[visit.slot] = recent[key] = visit
            visits.append(visit)
            if len(recent) >= window:
                del recent[next(iter(recent))]
        return visits

    def _least_near(self, later: dict[ExpertKey, None], recent: dict[ExpertKey, Visit]) -> ExpertKey:
        """Return whom to give up where the whole cache waits for its turn: who is computed last, or was first."""
        waiting = next((key for key in reversed(later) if key in self._slots), None)
        return waiting if waiting is not None else next(key for key in recent if key in self._slots)


class _Either:
    """Keys of one or the other table, without joining them."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Container[object], second: Container[object]) -> None:
        self._first = first
        self._second = second

    def __contains__(self, key: object) -> bool:
        return key in self._first or key in self._second
