import pytest

from teengined.core.errors import RequestError
from teengined.modelpack.precision_rules import MatrixPlace, PrecisionRule, parse_precision, resolve_rules


def place(address: str, *others: str, expert: int | None = None) -> MatrixPlace:
    addresses = tuple(tuple(text.split(".")) for text in (address, *others))
    return MatrixPlace(parameter=address, expert=expert, addresses=addresses)


PLACES = (
    place("embedding"),
    *(place(f"layers.{layer}.attention.q", f"layers.{layer}.self_attn.q") for layer in range(12)),
    *(place(f"layers.{layer}.mlp.up") for layer in range(12)),
    *(place(f"layers.{layer}.mlp.experts.{expert}", expert=expert) for layer in (3, 4) for expert in range(8)),
    place("head"),
)


def chosen(text: str) -> dict[str, str]:
    found = resolve_rules(PLACES, parse_precision(text).rules)
    return {parameter: precision for (parameter, _), precision in found.items()}


def test_a_plain_name_is_the_base_and_the_rest_are_rules_in_order() -> None:
    asked = parse_precision(" int4, layers.0-3 = bf16 ,head=int8,")

    assert asked.base == "int4"
    assert asked.rules == (PrecisionRule("layers.0-3", "bf16"), PrecisionRule("head", "int8"))
    assert parse_precision("head=int8").base == "auto"


@pytest.mark.parametrize("text", ["int4,int8", "=int4", "head=", ",".join(["head=int8"] * 1001)])
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_precision(text)


@pytest.mark.parametrize(
    ("rule", "matched"),
    [
        ("head", ["head"]),
        ("layers.*.attention", [f"layers.{n}.attention.q" for n in range(12)]),
        ("attention", [f"layers.{n}.attention.q" for n in range(12)]),
        ("layers.10.self_attn.q", ["layers.10.attention.q"]),
        ("layers.9-11.mlp.up", [f"layers.{n}.mlp.up" for n in (9, 10, 11)]),
        ("layers.3.experts.6-7", ["layers.3.mlp.experts.6", "layers.3.mlp.experts.7"]),
        ("layers.1?.mlp", ["layers.10.mlp.up", "layers.11.mlp.up"]),
    ],
)
def test_a_pattern_matches_what_begins_with_its_segments(rule: str, matched: list[str]) -> None:
    assert sorted(chosen(f"{rule}=x")) == sorted(matched)


def test_experts_belong_to_their_mlp_and_a_star_takes_everything() -> None:
    assert len(chosen("experts=x")) == 16
    assert len(chosen("mlp=x")) == 28
    assert len(chosen("*=x")) == len(PLACES)


def test_the_last_rule_that_matches_wins() -> None:
    found = chosen("layers.*=a,layers.3.mlp=b,layers.3.mlp.up=c,layers.4.mlp.experts=d,embedding=e")

    assert found["layers.2.mlp.up"] == "a"
    assert found["layers.3.mlp.up"] == "c"
    assert found["layers.3.mlp.experts.0"] == "b"
    assert found["layers.4.mlp.experts.0"] == "d"
    assert found["embedding"] == "e"
    assert "head" not in found


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        ("layers.*.mpl", "did you mean 'layers.*.mlp'?"),
        ("haed", "did you mean 'head'?"),
        ("layers.12.mlp", "layers are 0 … 11"),
        ("layers.3.experts.9", "layers are 0 … 11"),
        ("zzz", "there are embedding, layers"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_the_nearest_that_would(rule: str, hint: str) -> None:
    with pytest.raises(RequestError, match="matches no matrix") as refused:
        chosen(f"{rule}=int4")
    assert hint in refused.value.hint
