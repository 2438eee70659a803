"""Who keeps how much in the pool of host memory: units by their content, each counted once, and slots of one's own."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from teengined.core.errors import CapacityError
from teengined.core.model import ModelManifest
from teengined.core.plan import Plan, Tier
from teengined.core.quantities import format_bytes

__all__ = ["HostClaim", "HostLedger", "claim_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClaim:
    """What one deployment keeps in host memory below its devices."""

    units: Mapping[str, int] = field(default_factory=dict[str, int])
    """Bytes by digest. All who claim a digest share its memory."""
    private_bytes: int = 0
    """Of caches of experts in host memory, which each worker has for itself."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all of it, whoever shares them."""
        return sum(self.units.values()) + self.private_bytes


def claim_of(plan: Plan, manifest: ModelManifest) -> HostClaim:
    """Return what a plan of a package keeps in host memory."""
    specs = {unit.id: unit for unit in manifest.units}
    units: dict[str, int] = {}
    private_bytes = 0
    for stage in plan.stages:
        for placement in stage.units:
            if placement.tier is Tier.HOST:
                units[specs[placement.unit_id].digest] = specs[placement.unit_id].size_bytes
        caches = () if stage.experts is None else stage.experts.caches
        private_bytes += sum(cache.num_host_slots * cache.slot_bytes for cache in caches)
    return HostClaim(units=units, private_bytes=private_bytes)


class HostLedger:
    """Counts claims against the pool's budget."""

    def __init__(self, budget_bytes: int) -> None:
        """Start with everything left."""
        self.budget_bytes = budget_bytes
        self._claims: dict[str, HostClaim] = {}
        self._num_claims: Counter[str] = Counter()
        self._taken_bytes = 0

    @property
    def taken_bytes(self) -> int:
        """Bytes claimed, what is shared counted once."""
        return self._taken_bytes

    @property
    def digests(self) -> frozenset[str]:
        """Units that somebody claims: claiming them too takes nothing more."""
        return frozenset(self._num_claims)

    def claim_of(self, owner: str) -> HostClaim:
        """Return what `owner` claims; nothing where it does not."""
        return self._claims.get(owner, HostClaim())

    def add(self, owner: str, claim: HostClaim) -> None:
        """Count a claim.

        Raises:
            CapacityError: the pool has no room for what of it is not there yet; nothing was counted.
        """
        assert owner not in self._claims, f"{owner} claims twice"
        new_bytes = claim.private_bytes
        new_bytes += sum(size for digest, size in claim.units.items() if digest not in self._num_claims)
        left_bytes = self.budget_bytes - self._taken_bytes
        if new_bytes > left_bytes:
            raise CapacityError(
                f"the pool of host memory has {format_bytes(max(0, left_bytes))} left of its"
                f" {format_bytes(self.budget_bytes)}; {format_bytes(new_bytes)} more are asked ({new_bytes} bytes)",
                hint="raise host.memory, unload a model, or load with a smaller context",
            )
        self._claims[owner] = claim
        self._num_claims.update(claim.units.keys())
        self._taken_bytes += new_bytes

    def remove(self, owner: str) -> frozenset[str]:
        """Forget a claim, if there is one, and return the units that nobody claims any more."""
        claim = self._claims.pop(owner, HostClaim())
        self._num_claims.subtract(claim.units.keys())
        gone = frozenset(digest for digest in claim.units if self._num_claims[digest] == 0)
        for digest in gone:
            del self._num_claims[digest]
            self._taken_bytes -= claim.units[digest]
        self._taken_bytes -= claim.private_bytes
        return gone
