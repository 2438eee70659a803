"""What `auto` means: the arithmetic a device is measured to be fastest at, among those that keep the model's range."""

from teengined.core.device import DeviceProfile

__all__ = ["COMPUTE_DTYPES", "resolve_compute_dtype", "runnable_compute_dtype"]

COMPUTE_DTYPES = ("fp32", "bf16", "fp16")

# The request that is made fast: a prompt of 512 tokens in one chunk, then 128 tokens one by one.
_PREFILL_TOKENS, _NUM_PREFILLS = 512, 1
_DECODE_TOKENS, _NUM_DECODES = 1, 128
# A device that is this much slower at a narrow dtype than at fp32 emulates it: never chosen, not even for memory.
_MAX_SLOWDOWN = 4.0
# fp16 overflows at 65504, where bf16 and fp32 do not: for such models it must be worth a risk.
_MIN_RANGE_LOSS_GAIN = 2.0
# Twice the bits for less than this gain is the better bargain.
_MIN_GAIN = 1.1


def runnable_compute_dtype(profile: DeviceProfile, package_dtype: str) -> str:
    """Return the dtype to run a package in on this device: its own, unless the device was measured to crawl at it.

    Another dtype costs a cast of every weight at every use, so the package's own is kept wherever it is bearable.
    """
    if package_dtype != "fp32" and _crawls(profile, package_dtype):
        return resolve_compute_dtype(profile, package_dtype)
    return package_dtype


def resolve_compute_dtype(profile: DeviceProfile, source_dtype: str) -> str:
    """Return `fp32`, `bf16` or `fp16` for a model trained in `source_dtype` on the device of `profile`.

    `source_dtype` is a name of ours, of safetensors or of torch (`bf16`, `BF16`, `bfloat16`). The source's own dtype is
    preferred where nothing is clearly faster. Without a measurement at both row counts a dtype is not considered; with
    none at all the answer is `fp32`, which works everywhere.
    """
    source = _ours(source_dtype)
    seconds = {dtype: cost for dtype in COMPUTE_DTYPES if (cost := _cost(profile, dtype)) is not None}
    if not seconds:
        return "fp32"
    if "fp16" in seconds and not _fp16_is_sound(profile, seconds, source):
        del seconds["fp16"]
    candidates = sorted(seconds, key=lambda dtype: (dtype != source, COMPUTE_DTYPES.index(dtype)))
    if not candidates:
        return "fp32"
    best = candidates[0]
    for dtype in candidates[1:]:
        if seconds[dtype] * _MIN_GAIN < seconds[best]:
            best = dtype
    return best


def _crawls(profile: DeviceProfile, dtype: str) -> bool:
    for num_tokens in (_DECODE_TOKENS, _PREFILL_TOKENS):
        at_fp32 = _point(profile, "fp32", num_tokens)
        here = _point(profile, dtype, num_tokens)
        if at_fp32 is not None and here is not None and here > _MAX_SLOWDOWN * at_fp32:
            return True
    return False


def _fp16_is_sound(profile: DeviceProfile, seconds: dict[str, float], source: str) -> bool:
    fp16 = seconds["fp16"]
    if _crawls(profile, "fp16"):
        return False
    if source == "fp16":
        return True
    on_cuda = profile.device_id.partition(":")[0] == "cuda"
    others = [cost for dtype, cost in seconds.items() if dtype != "fp16"]
    return on_cuda and bool(others) and fp16 * _MIN_RANGE_LOSS_GAIN < min(others)


def _cost(profile: DeviceProfile, dtype: str) -> float | None:
    decode = _point(profile, dtype, _DECODE_TOKENS)
    prefill = _point(profile, dtype, _PREFILL_TOKENS)
    if decode is None or prefill is None:
        return None
    return _NUM_DECODES * decode + _NUM_PREFILLS * prefill


def _point(profile: DeviceProfile, dtype: str, num_tokens: int) -> float | None:
    for point in profile.compute:
        if point.precision == dtype and point.num_tokens == num_tokens:
            return point.seconds_per_parameter
    return None


def _ours(source_dtype: str) -> str:
    names = {
        "f32": "fp32",
        "float32": "fp32",
        "float": "fp32",
        "f16": "fp16",
        "float16": "fp16",
        "half": "fp16",
        "bfloat16": "bf16",
    }
    name = source_dtype.lower().removeprefix("torch.")
    return names.get(name, name)
