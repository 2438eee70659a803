from dataclasses import replace
from pathlib import Path

import pytest

from teengined.core.device import DeviceDescription, DeviceSpec
from teengined.core.errors import PackageError
from teengined.core.plan import Plan
from teengined.service.prefix_fingerprint import devices_of, fingerprint_of
from tests.unit.service.test_speed import meter

SETTINGS = {"block_tokens": 16, "kv_dtype": "auto"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"rope_theta": 10000}')
    return tmp_path


@pytest.fixture
def plan() -> Plan:
    return meter(compute_seconds=1.0, streamed_bytes=0, disk=1.0).plan


def test_same_deployment_has_the_same_fingerprint(package: Path, plan: Plan):
    assert fingerprint_of(package, plan, ["a 1", "b 2"], SETTINGS) == fingerprint_of(
        package, plan, ["a 1", "b 2"], dict(reversed(SETTINGS.items()))
    )


def test_everything_that_counts_changes_it(package: Path, plan: Plan):
    (stage,) = plan.stages
    found = {
        fingerprint_of(package, plan, ["a 1"], SETTINGS),
        fingerprint_of(package, plan, ["a 2"], SETTINGS),
        fingerprint_of(package, plan, ["a 1"], SETTINGS | {"block_tokens": 32}),
        fingerprint_of(package, plan, ["a 1"], SETTINGS | {"kv_dtype": "int8"}),
        fingerprint_of(package, replace(plan, context_tokens=plan.context_tokens + 1), ["a 1"], SETTINGS),
        fingerprint_of(package, replace(plan, stages=(replace(stage, device_id="cpu:7"),)), ["a 1"], SETTINGS),
        fingerprint_of(package, replace(plan, stages=(replace(stage, compute_dtype="bf16"),)), ["a 1"], SETTINGS),
    }
    for name, content in (("config.json", '{"rope_theta": 500000}'), ("manifest.json", "{ }")):
        (package / name).write_text(content)
        found.add(fingerprint_of(package, plan, ["a 1"], SETTINGS))

    assert len(found) == 9


def test_devices_are_told_apart_by_all_that_results_depend_on(plan: Plan):
    (stage,) = plan.stages
    spec = DeviceSpec(id=stage.device_id, driver="cpu", memory_bytes=1, threads=2)
    described = DeviceDescription(
        id=stage.device_id, driver="cpu", name="a CPU", uuid="", total_memory_bytes=1, library_versions=("torch 1",)
    )

    def devices(spec: DeviceSpec, described: DeviceDescription) -> tuple[str, ...]:
        return devices_of(plan, (spec,), {described.id: described})

    found = {
        devices(spec, described),
        devices(replace(spec, threads=3), described),
        devices(spec, replace(described, name="another CPU")),
        devices(spec, replace(described, library_versions=("torch 2",))),
    }
    assert len(found) == 4
    assert devices(replace(spec, memory_bytes=2), described) in found


def test_order_in_which_devices_are_found_does_not_count(plan: Plan):
    described = [
        DeviceDescription(
            id=f"gpu:{n}", driver="gpu", name="", uuid="", total_memory_bytes=1, library_versions=(f"v{n}",)
        )
        for n in range(3)
    ]
    found = {devices_of(plan, (), {each.id: each for each in order}) for order in (described, described[::-1])}

    assert len(found) == 1


def test_package_that_is_gone_is_told(tmp_path: Path, plan: Plan):
    with pytest.raises(PackageError, match=r"manifest\.json cannot be read"):
        fingerprint_of(tmp_path, plan, [], SETTINGS)
