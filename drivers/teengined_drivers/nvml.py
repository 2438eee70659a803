"""What NVIDIA's management library tells of the GPUs here, without torch and without a CUDA context."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pynvml

__all__ = ["Gpu", "cuda_build_missing", "driver_version", "list_gpus", "torch_version"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, in the order of the PCI bus."""

    index: int
    name: str
    uuid: str
    total_memory_bytes: int
    utilisation: float | None


def list_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this host.

    Raises:
        pynvml.NVMLError: there is no NVIDIA driver, or it does not answer.
    """
    pynvml.nvmlInit()
    try:
        return tuple(_describe(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str:
    """Return the version of the NVIDIA driver; raises as `list_gpus`."""
    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def torch_version() -> str | None:
    """Return the installed torch's version, None where there is none. Does not import it."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def cuda_build_missing() -> str:
    """Return why the installed torch cannot use a GPU, empty where it can. Does not import it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return "torch is not installed"
    if not (Path(found.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return f"the installed torch {torch_version() or ''} was built without CUDA"
    return ""


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        utilisation = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except pynvml.NVMLError:
        utilisation = None  # a GPU that is cut into instances does not tell
    return Gpu(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        total_memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        utilisation=utilisation,
    )
