import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from teengined_plugins.sources.pickled.machine import read_pickle
from teengined_plugins.sources.pickled.outcome import Wanted
from teengined_plugins.sources.pickled.process import answer_about
from teengined_plugins.sources.pickled.values import Inert, RefusedFile, TensorInStorage
from tests.fakes.deepspeed_files import write_torch_file
from tests.fakes.hostile_torch_files import call, in_a_file, mention, pickled, storage, tensor, text

ROOT: Wanted = [()]
ORDERED = mention("collections", "OrderedDict") + b")R"


def told(content: bytes, wanted: Wanted = ROOT) -> dict[str, Any]:
    return answer_about(lambda offset, size: content[offset : offset + size], len(content), wanted)


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    value: dict[str, Any] = {
        "numbers": [0, 255, 65_535, -1, 1 << 40, -(1 << 62), 1.5, True, False, None],
        "nested": {"a": ("b", ["c", ()])},
        "shape": torch.Size([3, 4]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "set": {5},
        "ordered": OrderedDict(z=1, a=2),
        "tensors": {
            "whole": torch.randn(4, 6),
            "part": torch.randn(8, 6)[2:5],
            "turned": torch.randn(4, 6).T,
            "parameter": torch.nn.Parameter(torch.randn(3).bfloat16()),
            "narrow": torch.randn(4).to(torch.float8_e4m3fn),
            "none": torch.empty(0, 3),
            "scalar": torch.tensor(2.5),
        },
    }
    content = write_torch_file(value, tmp_path / "t.pt").read_bytes()

    found = told(content, [(name,) for name in value])

    tensors = found["tensors"]["map"]
    assert found["numbers"] == value["numbers"]
    assert found["nested"] == {"map": {"a": ["b", ["c", []]]}}
    assert (found["shape"], found["dtype"], found["set"]) == ([3, 4], "BF16", [5])
    assert found["device"] is None
    assert found["ordered"] == {"map": {"z": 1, "a": 2}}
    for name, made in value["tensors"].items():
        dtype, shape, offset, in_order = tensors[name]["tensor"]
        assert (tuple(shape), in_order) == (tuple(made.shape), name != "turned")
        if in_order:
            stored = made.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert content[offset : offset + len(stored)] == stored
        assert dtype == {"parameter": "BF16", "narrow": "F8_E4M3"}.get(name, "F32")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "exec"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("importlib", "import_module"),
        ("collections", "OrderedDict.fromkeys"),
        ("deepspeed.runtime.engine", "DeepSpeedEngine"),
    ],
)
def test_a_name_that_weights_do_not_need_is_refused_by_name_and_not_run(module: str, name: str) -> None:
    for body in (call(module, name, text("touch bad")), text(module) + text(name) + b"\x93"):
        with pytest.raises(RefusedFile, match=f"{module}.{name}"):
            read_pickle(pickled(body))


DEEP = b"\x85" * 200_000


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "put down"),
        (b"0", "put down"),
        (b"(0", "put down"),
        (b"t", "not begun"),
        (b"u", "not begun"),
        (b"h\x07", "not there"),
        (b"}(Ku", "ends before"),
        (b"}(K\x01u", "key without"),
        (b"K\x01(K\x02e", "no list"),
        (b"](K\x01K\x02u", "no mapping"),
        (b"\x8b\xff\xff\xff\x7f", "number of"),
        (b"\x8a\xff", "number of"),
        (b"X\xff\xff\xff\xff", "truncated"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "truncated"),
        (b"X\x02\x00\x00\x00\xff\xfe", "no(ne|t)"),
        (b"cos" + b"x" * 1000, "does not end"),
        (b"K\x01K\x02R", "known function"),
        (text("os") + b")R", "known function"),
        (mention("torch", "FloatStorage") + b")R", "no call"),
        (text("id") + b"Q", "does not"),
        (b"(" + text("storage") + text("torch") + text("0") + text("cpu") + b"K\x01tQ", "does not"),
        (b"K\x01}b", "takes none"),
        (b"K\x01K\x02\x93", "no text"),
        (b"I1\n", "opcode 0x49"),
        (b"\x80\x09", "protocol"),
        (b"\x82\x01", "opcode"),
        (call("torch.", "x"), "torch..x"),
        (tensor(storage("0", 4), 0, (2, 3), (3, 1)), "does not lie"),
        (tensor(storage("0", 4), -1, (2,), (1,)), "does not lie"),
        (tensor(storage("0", 4), 0, (2,), (-1,)), "few sizes"),
        (tensor(storage("0", 4), 0, (-2,), (1,)), "few sizes"),
        (tensor(storage("0", 4), 0, (2, 2), (1,)), "does not lie"),
        (tensor(storage("0", 4), 0, (1,) * 9, (1,) * 9), "few sizes"),
        (tensor(storage("0", -4), 0, (2,), (1,)), "does not"),
        (tensor(storage("0", 4), 1 << 62, (2,), (1,)), "does not lie"),
        (tensor(text("no storage"), 0, (2,), (1,)), "does not"),
        (call("torch", "Size", b"(" + b"K\x01" * 9 + b"t"), "few sizes"),
        (call("torch._utils", "_rebuild_parameter", text("x")), "no tensor"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(body: bytes, problem: str) -> None:
    with pytest.raises(RefusedFile, match=problem):
        read_pickle(pickled(body))


def test_state_of_training_is_kept_as_nothing() -> None:
    scaler = mention("deepspeed.runtime.fp16.loss_scaler", "LossScaler") + b")\x81}" + text("a") + b"K\x01sb"

    assert read_pickle(pickled(scaler)) == Inert(name="deepspeed.runtime.fp16.loss_scaler.LossScaler")


def test_a_value_nested_without_end_is_read_and_not_told() -> None:
    assert read_pickle(pickled(b")" + DEEP))
    with pytest.raises(RefusedFile, match="nested"):
        told(in_a_file(b")" + DEEP))


def test_a_deep_key_is_dropped_without_being_hashed() -> None:
    assert read_pickle(pickled(b"})" + DEEP + b"K\x01s")) == {}


def test_a_list_that_holds_itself_is_not_told() -> None:
    with pytest.raises(RefusedFile, match="nested"):
        told(in_a_file(b"]q\x00h\x00a"))


def test_a_value_used_times_and_times_again_is_not_told() -> None:
    """Eight levels of a list with sixty times the same list: linear here, and trillions of values if told."""
    levels = [b"](" + (b"h" + bytes([level])) * 60 + b"eq" + bytes([level + 1]) + b"0" for level in range(7)]
    body = b"]q\x000" + b"".join(levels) + b"h\x07"
    with pytest.raises(RefusedFile, match="too much"):
        told(in_a_file(body))


def test_storages_must_be_there_and_long_enough() -> None:
    body = tensor(storage("0", 4), 0, (2, 2), (2, 1))
    with pytest.raises(RefusedFile, match="missing"):
        told(in_a_file(body))
    with pytest.raises(RefusedFile, match="16 bytes"):
        told(in_a_file(body, {"0": bytes(15)}))
    assert told(in_a_file(body, {"0": bytes(16)}))


def test_a_tensor_that_repeats_a_few_values_for_ever_is_not_handed_out_as_a_range() -> None:
    found = told(in_a_file(tensor(storage("0", 1), 0, (1 << 40,), (0,)), {"0": bytes(4)}))

    assert found[""]["tensor"][3] is False


def test_a_file_of_the_other_byte_order_is_refused() -> None:
    content = in_a_file(b"N").replace(b"little", b"big\0\0\0")
    with pytest.raises(RefusedFile, match="byte order"):
        told(content)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """Nothing else may come out: no other error, and no refusal without words."""
    try:
        read_pickle(pickled(body))
    except RefusedFile as refused:
        words = str(refused)
    else:
        words = "read"
    assert words


REAL = pickled(
    b"}q\x00("
    + text("module")
    + ORDERED
    + b"q\x01("
    + text("w")
    + tensor(storage("0", 4), 0, (2, 2), (2, 1))
    + text("b")
    + call("torch._utils", "_rebuild_parameter", tensor(storage("0", 4), 2, (2,), (1,)), b"\x88", ORDERED)
    + b"u"
    + text("n")
    + b"\x8a\x04"
    + struct.pack("<i", -5)
    + b"u"
)


@given(at=st.integers(0, len(REAL) - 1), value=st.integers(0, 255), cut=st.integers(0, len(REAL)))
def test_any_altered_byte_of_a_real_description_is_read_or_refused(at: int, value: int, cut: int) -> None:
    content = bytearray(REAL)
    content[at] = value
    for damaged in (bytes(content), REAL[:cut]):
        try:
            value_read = read_pickle(damaged)
        except RefusedFile:
            continue
        assert not isinstance(value_read, type)


def test_the_real_description_is_read() -> None:
    found = read_pickle(REAL)

    assert isinstance(found, dict)
    assert found["n"] == -5
    assert isinstance(found["module"]["w"], TensorInStorage)
