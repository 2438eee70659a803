"""Units that wait in the shared pool of host memory, on real accelerators: page-locked, copied, and let go of."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from teengined.core.device import DeviceSpec
from teengined.core.plan import Tier
from teengined.interfaces.driver import Device, Driver
from teengined.interfaces.registry import PluginRegistry
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from tests.fakes.package_builder import BuiltPackage, build_package, stage_of
from tests.fakes.running_pool import RunningPool

pytestmark = pytest.mark.gpu

MIB = 2**20
DRIVERS = {name: driver for name, driver in PluginRegistry.load().drivers().items() if name not in ("cpu", "null")}


@pytest.fixture(params=list(DRIVERS))
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    driver: Driver = DRIVERS[request.param]
    availability = driver.availability()
    if not availability.available:
        pytest.skip(f"driver {driver.name}: {availability.reason}")
    found = driver.discover()[0]
    with driver.open(DeviceSpec(id=found.id, driver=driver.name, memory_bytes=256 * MIB)) as opened:
        yield opened


def stage_weights(package: BuiltPackage, device: Device, pool: RunningPool, owner: str) -> StageWeights:
    units = {unit.digest: unit.size_bytes for unit in package.manifest.units}
    return StageWeights(
        package_dir=package.directory,
        manifest=package.manifest,
        stage=stage_of(package, streamed=("*",), tier=Tier.HOST),
        device=device,
        options=StreamOptions(timeout_seconds=30, host_pool=pool.access(owner, units)),
    )


def test_two_stages_stream_every_byte_from_the_pool(device: Device, tmp_path: Path) -> None:
    package = build_package(tmp_path, rows=1000)
    with RunningPool() as pool:
        stages = [stage_weights(package, device, pool, owner) for owner in ("one", "two")]
        for stage in stages:
            stage.open()
        for stage in stages:
            for _ in range(3):
                for group in stage.groups:
                    for unit_id, tensors in stage.acquire(group.index).items():
                        for parameter, parts in tensors.items():
                            for part, tensor in parts.items():
                                stored = package.tensors[unit_id, parameter, part]
                                assert torch.equal(tensor.cpu(), stored), (unit_id, parameter, part)
                    stage.release(group.index)
        notes = [note for stage in stages for note in stage.notes if "copies slower" in note]
        for stage in stages:
            stage.close()
    if notes:
        pytest.skip(f"every byte is right, and the pool is not page-locked here: {notes[0]}")
