"""The one place where the scheduling policy is asked, and its answers are checked."""

from collections.abc import Iterable

from teengined.core.errors import PluginError
from teengined.interfaces.policy import SchedulingPolicy
from teengined.scheduler.fairness import Owners
from teengined.scheduler.sequence import Sequence

__all__ = ["Ordering"]


class Ordering:
    """Asks the policy at one moment. It is asked about those sequences only among which a choice is to be made."""

    def __init__(self, policy: SchedulingPolicy, owners: Owners, now_seconds: float) -> None:
        """`owners` tells what the policy may know of the sequences' owners."""
        self._policy = policy
        self._owners = owners
        self._now_seconds = now_seconds

    def sort(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Return the sequences in the order in which the policy serves them.

        Raises:
            PluginError: the policy raised, or its answer is no permutation of the ids it was given.
        """
        owners = self._owners
        by_id = {sequence.id: sequence for sequence in sequences}
        views = [item.view(owners[item.request.submitted.owner].served_tokens) for item in by_id.values()]
        name = self._policy.name
        try:
            order = list(self._policy.order(views, self._now_seconds))
            is_permutation = len(order) == len(by_id) and set(order) == by_id.keys()
        except Exception as error:  # The edge: a stranger's code may raise anything.
            raise PluginError(f"scheduling policy {name!r} failed: {error!r:.200}") from error
        if not is_permutation:
            raise PluginError(f"scheduling policy {name!r} did not return a permutation of the sequences")
        return [by_id[sequence_id] for sequence_id in order]
