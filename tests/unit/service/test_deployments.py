"""Loading that is given up at the wrong moment leaves nothing behind."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from teengined.service.deployments import DeploymentSet
from teengined.service.prefix_store import KeptPrefixes, PrefixStore
from teengined.service.settings import Config, KvSettings
from tests.unit.service.test_speed import meter
from tests.unit.service.test_spool import planned

PACKAGE = "tiny"


def deployments(tmp_path: Path, kept: PrefixStore) -> Any:
    for name in ("manifest.json", "config.json"):
        (tmp_path / name).write_text("{}")
    unused = cast("Any", None)
    return DeploymentSet(
        config=Config(kv=KvSettings(disk_spool=1 << 20, kept_spool=1 << 20)),
        planner=cast("Any", SimpleNamespace(profiles=SimpleNamespace(specs=(), descriptions={}))),
        pool=unused,
        runtime_dir=tmp_path,
        spool=unused,
        kept=kept,
        host_pool=unused,
    )


def test_directory_that_is_had_after_the_load_was_given_up_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = PrefixStore(
        root=tmp_path / "kept", key_path=tmp_path / "key", max_bytes=1 << 20, max_age_seconds=1.0, now=lambda: 0.0
    )
    opening, go, found = threading.Event(), threading.Event(), list[KeptPrefixes | None]()
    open_now = PrefixStore.open

    def slowly(where: PrefixStore, package: str, fingerprint: str) -> KeptPrefixes | None:
        opening.set()
        go.wait(60)
        found.append(open_now(where, package, fingerprint))
        return found[-1]

    monkeypatch.setattr(PrefixStore, "open", slowly)
    plan = meter(compute_seconds=1.0, streamed_bytes=0, disk=1.0).plan
    asked = planned()
    asked.plan = SimpleNamespace(**{name: getattr(plan, name) for name in ("context_tokens", "prefill_seconds")})
    asked.plan.stages = [
        SimpleNamespace(kv_bytes=10_000, device_id="cpu:0", layer_start=0, layer_end=1, compute_dtype="fp32")
    ]
    asked.planning.kv_dtype = "auto"
    request = cast("Any", SimpleNamespace(plan=SimpleNamespace(model=PACKAGE, numerics="strict")))

    async def live() -> None:
        load = asyncio.create_task(deployments(tmp_path, store)._spool(request, tmp_path, asked))
        await asyncio.to_thread(opening.wait, 60)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        go.set()
        current = asyncio.current_task()
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not current))
        await asyncio.sleep(0)

    asyncio.run(live())
    assert found[0] is not None
    again = open_now(store, PACKAGE, "this")
    assert again is not None
    again.close()
