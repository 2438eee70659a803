import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import RequestError
from teengined.modelpack.naming import check_name, directory_of, name_in

PART = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._]{0,20}(-[A-Za-z0-9._]{1,5}){0,3}", fullmatch=True)
NAME = st.one_of(PART, st.tuples(PART, PART).map("/".join))


@given(NAME)
def test_a_name_comes_back_from_its_directory(name: str) -> None:
    directory = directory_of(name)
    assert "/" not in directory
    assert name_in(directory) == name


@given(NAME, NAME)
def test_two_names_never_share_a_directory(one: str, other: str) -> None:
    assert (directory_of(one) == directory_of(other)) == (one == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "a/b/c",
        "/a",
        "a/",
        ".hidden",
        "a--b",
        "a b",
        "a\n",
        "a\0b",
        "é",
        "-a",
        "x" * 200,
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="cannot name a model"):
        check_name(name)


def test_a_directory_that_is_no_package_has_no_name() -> None:
    assert name_in(".converting-x") is None
    assert name_in("a--b--c") is None
