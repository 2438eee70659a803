from pathlib import Path

import pynvml
import pytest

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeviceUnavailable
from teengined_drivers import cuda, nvml
from teengined_drivers.cuda import CudaDriver

# The management library stands at the edge of the machine: what it would say of two GPUs is given here.
GPUS = {0: ("NVIDIA L4", "GPU-aaaa", 24 * 10**9, 37), 1: ("NVIDIA H100", "GPU-bbbb", 80 * 10**9, None)}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rates:
        def __init__(self, gpu: int) -> None:
            self.gpu = gpu

    class Memory:
        def __init__(self, total: int) -> None:
            self.total = total

    def rates(index: int) -> Rates:
        busy = GPUS[index][3]
        if busy is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return Rates(busy)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(GPUS))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda index: GPUS[index][0])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda index: GPUS[index][1])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda index: Memory(GPUS[index][2]))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", rates)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.1")
    monkeypatch.setattr(cuda, "cuda_build_missing", lambda: "")


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_described_as_the_management_library_tells() -> None:
    first, second = CudaDriver().discover()

    assert (first.id, first.name, first.uuid, first.utilisation) == ("cuda:0", "NVIDIA L4", "GPU-aaaa", 0.37)
    assert (second.id, second.total_memory_bytes, second.utilisation) == ("cuda:1", 80 * 10**9, None)
    assert first.library_versions[1] == "nvidia 580.1"


@pytest.mark.usefixtures("two_gpus")
def test_gpu_beyond_those_that_are_there_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="cuda:2 does not exist; this host has 2 GPUs"):
        CudaDriver().open(DeviceSpec(id="cuda:2", driver="cuda", memory_bytes=1))


def test_host_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    monkeypatch.setattr(cuda, "cuda_build_missing", lambda: "")

    availability = CudaDriver().availability()

    assert not availability.available
    assert "no NVIDIA driver answers" in availability.reason
    assert CudaDriver().discover() == ()


def test_torch_without_cuda_is_found_out_by_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    monkeypatch.setattr(nvml.importlib.util, "find_spec", _finder(tmp_path / "torch/__init__.py"))

    assert "built without CUDA" in nvml.cuda_build_missing()

    (tmp_path / "torch/lib").mkdir()
    (tmp_path / "torch/lib/libtorch_cuda.so").touch()
    assert nvml.cuda_build_missing() == ""


def _finder(origin: Path):
    class Spec:
        pass

    Spec.origin = str(origin)  # type: ignore[attr-defined]
    return lambda name: Spec if name == "torch" else None
