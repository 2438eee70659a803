import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.device import ComputePoint, DeviceProfile
from teengined.core.precision_choice import COMPUTE_DTYPES, resolve_compute_dtype, runnable_compute_dtype


def _profile(device_id: str = "cpu:0", /, **seconds: tuple[float, float]) -> DeviceProfile:
    """Seconds per parameter at 1 and at 512 tokens, by precision."""
    points = [
        ComputePoint(precision=name, num_tokens=num_tokens, seconds_per_parameter=cost)
        for name, pair in seconds.items()
        for num_tokens, cost in zip((1, 512), pair, strict=True)
    ]
    return DeviceProfile(
        device_id=device_id,
        compute_dtype="fp32",
        compute=tuple(points),
        layer_overhead_seconds=0.0,
        host_to_device_bytes_per_second=None,
    )


# Measured on two cores with AVX-512 and bf16 instructions; fp16 products are emulated there.
AVX512 = {"fp32": (1.7e-10, 5.0e-9), "bf16": (8.6e-11, 2.4e-9), "fp16": (5e-9, 2.5e-6)}


@pytest.mark.parametrize("source_dtype", ["BF16", "bf16", "bfloat16", "torch.bfloat16", "F32", "float32"])
def test_faster_bf16_is_taken_for_a_model_of_the_same_range(source_dtype: str) -> None:
    assert resolve_compute_dtype(_profile(**AVX512), source_dtype) == "bf16"


@pytest.mark.parametrize("source_dtype", ["F16", "float16", "fp16", "bf16", "fp32"])
def test_fp16_is_never_taken_where_it_crawls(source_dtype: str) -> None:
    assert resolve_compute_dtype(_profile(**AVX512), source_dtype) != "fp16"


def test_fp16_that_crawls_only_at_many_rows_is_not_taken_either() -> None:
    profile = _profile(fp32=(2e-10, 5e-9), fp16=(1e-10, 2.1e-8))

    assert resolve_compute_dtype(profile, "fp16") == "fp32"


def test_fp16_model_keeps_its_dtype_where_the_device_is_fast_at_it() -> None:
    profile = _profile("cuda:0", fp32=(2e-12, 1e-10), bf16=(1e-12, 1e-11), fp16=(1e-12, 1e-11))

    assert resolve_compute_dtype(profile, "F16") == "fp16"


@pytest.mark.parametrize(("device_id", "chosen"), [("cuda:0", "fp16"), ("cpu:0", "fp32")])
def test_range_is_given_up_only_on_a_gpu_without_fast_bf16(device_id: str, chosen: str) -> None:
    profile = _profile(device_id, fp32=(4e-12, 8e-11), bf16=(8e-12, 9e-11), fp16=(1e-12, 1e-11))

    assert resolve_compute_dtype(profile, "bf16") == chosen


def test_range_is_kept_where_fp16_is_only_somewhat_faster() -> None:
    profile = _profile("cuda:0", fp32=(4e-12, 8e-11), bf16=(1.5e-12, 1.5e-11), fp16=(1e-12, 1e-11))

    assert resolve_compute_dtype(profile, "bf16") == "bf16"


def test_source_dtype_stays_where_nothing_is_clearly_faster() -> None:
    profile = _profile(fp32=(1.0e-10, 1e-9), bf16=(0.97e-10, 0.97e-9))

    assert resolve_compute_dtype(profile, "fp32") == "fp32"
    assert resolve_compute_dtype(profile, "bf16") == "bf16"


def test_nothing_measured_means_fp32() -> None:
    assert resolve_compute_dtype(_profile(), "bf16") == "fp32"
    assert resolve_compute_dtype(_profile(int8=(1e-11, 1e-9)), "bf16") == "fp32"


@given(
    costs=st.dictionaries(
        st.sampled_from(COMPUTE_DTYPES), st.tuples(*[st.floats(min_value=1e-13, max_value=1e-6)] * 2), max_size=3
    ),
    source_dtype=st.sampled_from(["bf16", "F32", "fp16", "F8_E4M3"]),
    device_id=st.sampled_from(["cpu:0", "cuda:0"]),
)
def test_choice_is_always_one_of_three_and_never_a_crawling_or_range_losing_one(
    costs: dict[str, tuple[float, float]], source_dtype: str, device_id: str
) -> None:
    chosen = resolve_compute_dtype(_profile(device_id, **costs), source_dtype)

    assert chosen in COMPUTE_DTYPES
    if chosen == "fp16":
        assert source_dtype == "fp16" or device_id == "cuda:0"
        assert all(costs["fp16"][i] <= 4 * costs.get("fp32", costs["fp16"])[i] for i in range(2))


@pytest.mark.parametrize("package_dtype", ["fp32", "bf16"])
def test_a_package_runs_in_its_own_dtype_where_the_device_bears_it(package_dtype: str) -> None:
    assert runnable_compute_dtype(_profile(**AVX512), package_dtype) == package_dtype


def test_a_package_in_a_dtype_at_which_the_device_crawls_runs_in_another() -> None:
    assert runnable_compute_dtype(_profile(**AVX512), "fp16") in {"fp32", "bf16"}


def test_a_package_runs_in_its_own_dtype_where_nothing_was_measured() -> None:
    assert runnable_compute_dtype(_profile(), "fp16") == "fp16"
