import pytest

from teengined.core.errors import RequestError
from teengined.interfaces.source import SourceTensor
from teengined.modelpack.choices import resolve_compute_dtype, resolve_precision


def tensors(*dtypes: tuple[str, int]) -> list[SourceTensor]:
    return [SourceTensor(name=dtype, dtype=dtype, shape=(count,)) for dtype, count in dtypes]


@pytest.mark.parametrize(
    ("held", "precision"),
    [
        ([("BF16", 100), ("F32", 10)], "bf16"),
        ([("F16", 100), ("F32", 10)], "fp16"),
        ([("F32", 100), ("BF16", 10)], "fp32"),
        ([("F64", 5)], "fp32"),
        ([("Q4_1", 5), ("F32", 500)], "bf16"),
        ([("I64", 5)], "bf16"),
        ([], "bf16"),
    ],
)
def test_auto_keeps_the_dtype_of_most_elements(held: list[tuple[str, int]], precision: str) -> None:
    assert resolve_precision("auto", tensors(*held)) == precision


def test_a_named_precision_is_kept() -> None:
    assert resolve_precision("int8", tensors(("F32", 1))) == "int8"


@pytest.mark.parametrize(
    ("asked", "precision", "dtype"),
    [("auto", "fp32", "fp32"), ("auto", "fp16", "fp16"), ("auto", "int8", "bf16"), ("fp32", "int8", "fp32")],
)
def test_the_compute_dtype_follows_the_precision_unless_told(asked: str, precision: str, dtype: str) -> None:
    assert resolve_compute_dtype(asked, precision) == dtype


def test_an_unknown_compute_dtype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="fp8") as refused:
        resolve_compute_dtype("fp8", "int8")
    assert "bf16" in refused.value.hint
