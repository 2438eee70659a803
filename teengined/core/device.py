"""Devices as configured, as described by their driver, and as measured."""

from dataclasses import dataclass

__all__ = [
    "MEASURED_TOKENS",
    "ComputePoint",
    "DeviceDescription",
    "DeviceProfile",
    "DeviceSpec",
    "HostProfile",
    "LinkProfile",
    "MemoryInfo",
]

# Row counts at which kernels are measured: a lone stream, a small batch, a large batch, a prefill chunk.
MEASURED_TOKENS = (1, 8, 64, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device as the operator configured it (or as the driver found it)."""

    id: str
    """`<driver>:<index>`, such as `cpu:0` or `cuda:1`. Unique on the host."""
    driver: str
    memory_bytes: int
    """Budget for weights, KV, workspace and ring together. The device never holds more."""
    threads: int = 1
    """CPU threads for arithmetic (host threads that feed the device, for others)."""
    cores: tuple[int, ...] = ()
    """CPU cores the worker is bound to; empty: any."""
    is_locked: bool = False
    """Keep its host memory from being swapped out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDescription:
    """A device as its driver sees it, without opening it."""

    id: str
    driver: str
    name: str
    uuid: str
    total_memory_bytes: int
    library_versions: tuple[str, ...]
    """`torch 2.13.0`, driver versions …: a change invalidates measured profiles."""
    utilisation: float | None = None
    """0 … 1 where the driver can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """Bytes of a device now."""

    budget_bytes: int
    allocated_bytes: int
    """By this worker through the driver."""
    device_free_bytes: int
    """On the whole device, other programs included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputePoint:
    """Measured cost of matrix products: seconds for each parameter of a weight, at a number of rows."""

    precision: str
    num_tokens: int
    seconds_per_parameter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What a device was measured to do. Valid for the given library versions only."""

    device_id: str
    compute_dtype: str
    """Fastest of fp32, bf16, fp16 that keeps the source's range: what `auto` resolves to."""
    compute: tuple[ComputePoint, ...]
    layer_overhead_seconds: float
    """Fixed cost of one layer beside its products: Python, attention at short context, norms."""
    host_to_device_bytes_per_second: float | None
    """None where host memory is device memory."""
    library_versions: tuple[str, ...] = ()

    def seconds_per_parameter(self, precision: str, num_tokens: int) -> float:
        """Return the measured cost at the nearest measured row count at or above `num_tokens` (the largest beyond).

        Raises:
            KeyError: nothing was measured for `precision`.
        """
        points = sorted((p for p in self.compute if p.precision == precision), key=lambda p: p.num_tokens)
        if not points:
            raise KeyError(precision)
        above = [point for point in points if point.num_tokens >= num_tokens]
        if above:
            return above[0].seconds_per_parameter
        return points[-1].seconds_per_parameter * num_tokens / points[-1].num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """What a host was measured to do. Its disk and memory are shared by all its devices."""

    host: str
    disk_read_bytes_per_second: float
    """Large aligned parallel reads of the package directory's disk, past the page cache."""
    memory_read_bytes_per_second: float
    memory_bytes: int
    """Host memory that weights may use beyond the devices' own budgets (the host tier); 0 for CPU-only hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProfile:
    """Measured path between two devices: time of a message = latency + bytes / bandwidth."""

    source: str
    target: str
    transport: str
    latency_seconds: float
    bytes_per_second: float
