"""Every message of both tables survives the wire, and the tables keep their word."""

import dataclasses
import re
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teengined.core.sampling import SamplingParams
from teengined.protocol import messages, worker_messages
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.messages import CLIENT_MESSAGES
from teengined.protocol.worker_messages import WORKER_MESSAGES

TABLES = {"client": CLIENT_MESSAGES, "worker": WORKER_MESSAGES}
ENTRIES = [(name, tag, cls) for name, table in TABLES.items() for tag, cls in table.items()]

# What msgpack can carry; NaN is left out only because it is not equal to itself.
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(str, st.text(st.characters(codec="utf-8"), max_size=20))
st.register_type_strategy(
    SamplingParams,
    st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 2**31),
        temperature=st.floats(0, 100),
        top_p=st.floats(0, 1, exclude_min=True),
        seed=st.integers(0, 2**64 - 1),
        ignore_eos=st.booleans(),
    ),
)


@pytest.mark.parametrize(("table", "tag", "cls"), ENTRIES, ids=[tag for _, tag, _ in ENTRIES])
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_message_survives_the_wire(table: str, tag: str, cls: type, data: st.DataObject) -> None:
    sent = Envelope(correlation=2**63 - 1, message=data.draw(st.from_type(cls)))

    assert decode(encode(sent, TABLES[table], CodecLimits()), TABLES[table], CodecLimits()) == sent


@pytest.mark.parametrize(("table", "tag", "cls"), ENTRIES, ids=[tag for _, tag, _ in ENTRIES])
def test_message_is_a_frozen_slotted_keyword_only_value(table: str, tag: str, cls: type) -> None:
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(cls)
    assert all(field.kw_only for field in dataclasses.fields(cls))


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_no_class_has_two_tags(table: Mapping[str, type]) -> None:
    assert len(set(table.values())) == len(table)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_tags_are_short_and_lower_case(table: Mapping[str, type]) -> None:
    assert [tag for tag in table if not re.fullmatch(r"[a-z][a-z_]{1,30}", tag)] == []


@pytest.mark.parametrize(
    ("module", "table"), [(messages, CLIENT_MESSAGES), (worker_messages, WORKER_MESSAGES)], ids=["client", "worker"]
)
def test_overview_names_every_message(module: object, table: Mapping[str, type]) -> None:
    words = set(re.findall(r"\w+", module.__doc__ or ""))

    assert {cls.__name__ for cls in table.values()} - words == set()
