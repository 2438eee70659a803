from dataclasses import replace
from pathlib import Path

import pytest

from teengined.core.errors import PackageError
from teengined.core.plan import Plan
from teengined.service.prefix_fingerprint import fingerprint_of
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
        package, plan, ["b 2", "a 1"], dict(reversed(SETTINGS.items()))
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


def test_package_that_is_gone_is_told(tmp_path: Path, plan: Plan):
    with pytest.raises(PackageError, match=r"manifest\.json cannot be read"):
        fingerprint_of(tmp_path, plan, [], SETTINGS)
