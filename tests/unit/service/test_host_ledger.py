"""Counting the pool of host memory: what is shared counts once, whoever comes and goes in whatever order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import CapacityError
from teengined.service.host_ledger import HostClaim, HostLedger

MB = 10**6


def claim(*names: str, private_bytes: int = 0) -> HostClaim:
    return HostClaim(units=dict.fromkeys(names, MB), private_bytes=private_bytes)


def test_what_two_claim_counts_once_until_both_are_gone() -> None:
    ledger = HostLedger(3 * MB)
    ledger.add("one", claim("a", "b"))
    ledger.add("two", claim("b", "c"))

    assert (ledger.taken_bytes, ledger.digests) == (3 * MB, {"a", "b", "c"})
    assert ledger.remove("one") == {"a"}
    assert (ledger.taken_bytes, ledger.digests) == (2 * MB, {"b", "c"})
    assert ledger.remove("two") == {"b", "c"}
    assert ledger.taken_bytes == 0


def test_a_claim_beyond_the_budget_is_refused_with_numbers_and_counts_nothing() -> None:
    ledger = HostLedger(5 * MB)
    ledger.add("one", claim("a", "b", private_bytes=MB))

    with pytest.raises(CapacityError, match=r"has 2\.0 MB left of its 5\.0 MB; 3\.0 MB more are asked \(3000000 bytes"):
        ledger.add("two", claim("b", "c", "d", private_bytes=MB))

    assert (ledger.taken_bytes, ledger.digests) == (3 * MB, {"a", "b"})
    assert ledger.claim_of("two") == HostClaim()
    ledger.add("two", claim("b", "c", private_bytes=MB))


def test_removing_what_never_claimed_changes_nothing() -> None:
    ledger = HostLedger(MB)

    assert ledger.remove("nobody") == frozenset()
    assert ledger.taken_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.frozensets(st.sampled_from("abcdef")), st.integers(0, 3)), max_size=30))
def test_taken_is_always_the_union_of_units_and_the_sum_of_the_rest(
    steps: list[tuple[int, frozenset[str], int]],
) -> None:
    ledger, held = HostLedger(7), dict[str, HostClaim]()
    for number, names, private_bytes in steps:
        owner = str(number)
        if owner in held:
            gone = ledger.remove(owner)
            units = held.pop(owner).units
            others = {name for other in held.values() for name in other.units}
            assert gone == set(units) - others
            continue
        wanted = HostClaim(units=dict.fromkeys(names, 1), private_bytes=private_bytes)
        try:
            ledger.add(owner, wanted)
            held[owner] = wanted
        except CapacityError:
            units = {name for other in (*held.values(), wanted) for name in other.units}
            assert len(units) + sum(other.private_bytes for other in (*held.values(), wanted)) > 7
        union = {name for other in held.values() for name in other.units}
        assert ledger.digests == union
        assert ledger.taken_bytes == len(union) + sum(other.private_bytes for other in held.values()) <= 7
