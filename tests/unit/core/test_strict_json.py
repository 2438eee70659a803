import pytest

from teengined.core.strict_json import STRICT_JSON


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_numbers_that_json_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no JSON number"):
        STRICT_JSON.decode(text)


def test_what_json_has_is_taken() -> None:
    assert STRICT_JSON.decode('{"a": [1, -2.5e3, null, true, "x"]}') == {"a": [1, -2500.0, None, True, "x"]}


@pytest.mark.parametrize("text", ["1e999", "[-1.0e400]", '{"a": 1' + "0" * 400 + ".5}"])
def test_numbers_that_would_become_infinite_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="larger than any number"):
        STRICT_JSON.decode(text)
