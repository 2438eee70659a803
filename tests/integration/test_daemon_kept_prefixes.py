"""A real daemon with a real worker: what one deployment computed begins the prompts of the next one."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.private_daemon import PrivateDaemon
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.core.sampling import SamplingParams
from teengined.native.library import kernel_library, missing_reason
from teengined.protocol.messages import Deployment, Finished, Generate, LoadModel, PlanModel, TokenChunk
from tests.fakes.converted import convert_directory
from tests.fakes.running_daemon import wait_until
from tests.fakes.tiny_models import build_tiny_model
from tests.integration.test_daemon_disks import SETTINGS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NAME = "tiny"
PROMPT = tuple(range(3, 53))
NUM_KEPT_TOKENS = 48
KEPT = 'disk_spool = "8MiB"\nkept_spool = "8MiB"\nkept_interval = "100ms"\n'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    source = build_tiny_model("llama", directory / "source", seed=3)
    (directory / "store").mkdir()
    convert_directory(source, directory / "store")
    return directory / "store"


def daemon(store: Path, directory: Path, kept: str = KEPT, **changed: str) -> PrivateDaemon:
    settings = SETTINGS.replace("context = 64", f"context = {changed.get('context', '128')}")
    settings = settings.replace("[kv]\n", f"[kv]\n{kept}")
    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=256 << 20, threads=1)
    return PrivateDaemon(directory / "state", store, [spec], settings)


def load(client: Client, name: str = "") -> Deployment:
    return client.load(LoadModel(plan=PlanModel(model=NAME, numerics="strict"), name=name)).deployment


def ask(client: Client, prompt: tuple[int, ...] = PROMPT, salt: str = "", name: str = NAME) -> tuple[list[int], int]:
    """Return the answer, and how many tokens of its prompt were cached."""
    sampling = SamplingParams(max_tokens=8, ignore_eos=True, temperature=0.0)
    events = list(client.generate(Generate(model=name, token_ids=prompt, sampling=sampling, cache_salt=salt)))
    tokens = [token for event in events if isinstance(event, TokenChunk) for token in event.token_ids]
    (end,) = (event for event in events if isinstance(event, Finished))
    return tokens, end.usage.cached_tokens


def kept_files(directory: Path) -> dict[str, Path]:
    found = {path.name: path for path in (directory / "state" / "spool" / "kept").glob("*/*")}
    return {name: path for name, path in found.items() if path.is_file()}


def deployment(client: Client, name: str = NAME) -> Deployment:
    (found,) = (item for item in client.deployments().deployments if item.model == name)
    return found


@pytest.fixture
def first(store: Path, tmp_path: Path) -> list[int]:
    """Return the answer of a daemon that was stopped since."""
    with daemon(store, tmp_path) as running:
        load(running.client)
        tokens, _ = ask(running.client)
    return tokens


def test_prompt_begins_with_what_was_written_before_the_unload(store: Path, tmp_path: Path) -> None:
    with daemon(store, tmp_path) as running:
        load(running.client)
        before = ask(running.client)
        running.client.unload(NAME)
        files = kept_files(tmp_path)
        assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
        assert files["manifest"].parent.stat().st_mode & 0o777 == 0o700
        load(running.client)
        after = ask(running.client)
        tiers = deployment(running.client).kv_tiers

    assert (before[1], after[1]) == (0, NUM_KEPT_TOKENS)
    assert after[0] == before[0]
    assert (tiers.num_fetched, tiers.num_failed) == (3, 0)


def test_prompt_begins_with_what_an_earlier_daemon_wrote(store: Path, tmp_path: Path, first: list[int]) -> None:
    assert (tmp_path / "state" / "spool.key").stat().st_mode & 0o777 == 0o600
    with daemon(store, tmp_path) as running:
        load(running.client)

        assert ask(running.client) == (first, NUM_KEPT_TOKENS)


def test_what_was_written_outlives_a_daemon_that_is_killed(store: Path, tmp_path: Path) -> None:
    with daemon(store, tmp_path) as running:
        load(running.client)
        before, _ = ask(running.client)
        wait_until(lambda: deployment(running.client).kv_tiers.num_disk_blocks == 3, "the blocks are written")
        wait_until(lambda: "manifest" in kept_files(tmp_path), "the manifest is written")
        os.kill(running._process.pid, signal.SIGKILL)
        running._process.wait()
    with daemon(store, tmp_path) as running:
        load(running.client)
        after, cached = ask(running.client)

    assert after == before
    assert cached > 0


def test_nobody_begins_with_what_is_kept_under_another_salt(store: Path, tmp_path: Path, first: list[int]) -> None:
    with daemon(store, tmp_path) as running:
        load(running.client)

        assert ask(running.client, salt="another") == (first, 0)
        assert ask(running.client) == (first, NUM_KEPT_TOKENS)


def test_altered_block_is_noticed_and_computed_again(store: Path, tmp_path: Path, first: list[int]) -> None:
    path = kept_files(tmp_path)["stage0"]
    content = bytearray(path.read_bytes())
    for offset in range(0, len(content), 512):
        content[offset] ^= 1
    path.write_bytes(content)
    with daemon(store, tmp_path) as running:
        load(running.client)
        answer = ask(running.client)
        num_failed = deployment(running.client).kv_tiers.num_failed
        log = running.log_file.read_text()

    assert answer[0] == first
    assert answer[1] < NUM_KEPT_TOKENS
    assert num_failed > 0
    assert "a slot of the spool file was altered" in log


def test_altered_manifest_is_noticed_and_computed_again(store: Path, tmp_path: Path, first: list[int]) -> None:
    path = kept_files(tmp_path)["manifest"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with daemon(store, tmp_path) as running:
        load(running.client)

        assert ask(running.client) == (first, 0)
        assert "is not used: it was altered" in running.log_file.read_text()


def test_other_settings_begin_anew_and_remove_what_is_there(store: Path, tmp_path: Path, first: list[int]) -> None:
    inode = kept_files(tmp_path)["stage0"].stat().st_ino
    with daemon(store, tmp_path, context="96") as running:
        load(running.client)

        assert ask(running.client) == (first, 0)
        assert "the package or its settings are others now" in running.log_file.read_text()
        assert kept_files(tmp_path)["stage0"].stat().st_ino != inode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of half a megabyte, which is soon full."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", str(mount)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting takes root: {mounted.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill(directory: Path) -> None:
    """Leave no byte on a small disk."""
    with (directory / "rest").open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_full_disk_drops_the_manifest_and_nothing_fails(store: Path, tmp_path: Path, small_disk: Path) -> None:
    kept = f'disk_spool = "48KiB"\nkept_spool = "48KiB"\nkept_interval = "50ms"\nspool_dir = "{small_disk}"\n'
    with daemon(store, tmp_path, kept) as running:
        num_slots = load(running.client).kv_tiers.num_disk_slots
        prompts = [tuple(first + token for token in PROMPT) for first in range(0, 8 * num_slots, 8)]
        before = [ask(running.client, prompt)[0] for prompt in prompts]
        wait_until(lambda: list(small_disk.glob("kept/*/manifest")) != [], "the manifest is written")
        fill(small_disk)
        others = [ask(running.client, prompt[::-1])[0] for prompt in prompts]
        wait_until(lambda: list(small_disk.glob("kept/*/manifest")) == [], "the manifest is dropped")
        problem = deployment(running.client).kv_tiers.problem
        running.client.unload(NAME)
        load(running.client)
        after = [ask(running.client, prompt)[0] for prompt in prompts]
        others_after = [ask(running.client, prompt[::-1])[0] for prompt in prompts]

    assert 0 < num_slots < 20
    assert (after, others_after) == (before, others)
    assert "the manifest of kept KV cannot be written: [Errno 28] No space left on device" in problem


def test_second_deployment_of_a_package_keeps_nothing(store: Path, tmp_path: Path) -> None:
    with daemon(store, tmp_path) as running:
        load(running.client)
        load(running.client, "other")
        ask(running.client)
        running.client.unload("other")

        assert set(kept_files(tmp_path)) >= {"stage0"}


def test_setting_that_is_off_removes_what_was_kept(store: Path, tmp_path: Path, first: list[int]) -> None:
    assert kept_files(tmp_path)
    with daemon(store, tmp_path, kept='disk_spool = "8MiB"\n'):
        assert kept_files(tmp_path) == {}


def test_package_that_is_removed_takes_along_what_is_kept_of_it(store: Path, tmp_path: Path) -> None:
    own = tmp_path / "store"
    shutil.copytree(store, own)
    with daemon(own, tmp_path) as running:
        load(running.client)
        ask(running.client)
        running.client.unload(NAME)
        assert kept_files(tmp_path)

        running.client.remove(NAME)

        assert kept_files(tmp_path) == {}


def test_nothing_is_taken_over_from_other_kernels(
    store: Path, tmp_path: Path, first: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel_library() is None:
        pytest.skip(f"there are no compiled kernels: {missing_reason()}")
    monkeypatch.setenv("TEENGINE_NO_NATIVE", "1")
    with daemon(store, tmp_path) as running:
        load(running.client)

        assert ask(running.client) == (first, 0)
        assert "it was computed with other kernels" in running.log_file.read_text()


def test_bounds_hold_for_all_packages_together_when_the_daemon_stops(store: Path, tmp_path: Path) -> None:
    own = tmp_path / "store"
    own.mkdir()
    for name in (NAME, "other"):
        convert_directory(store.parent / "source", own, name=name)
    kept = 'disk_spool = "1MiB"\nkept_spool = "48KiB"\nkept_interval = "100ms"\n'
    with daemon(own, tmp_path, kept) as running:
        for name in (NAME, "other"):
            running.client.load(LoadModel(plan=PlanModel(model=name)))
            num_slots = deployment(running.client, name).kv_tiers.num_disk_slots
            for first in range(0, 8 * num_slots, 8):
                ask(running.client, tuple(first + token for token in PROMPT), name=name)
            wait_until(
                lambda name=name, most=num_slots: deployment(running.client, name).kv_tiers.num_disk_blocks == most,
                "the disk is full",
            )
        running.client.unload("other")
        assert len(manifests(tmp_path)) == 2
    (left,) = manifests(tmp_path)

    assert sum(path.stat().st_size for path in left.parent.iterdir()) <= 48 << 10


def manifests(directory: Path) -> list[Path]:
    return list((directory / "state" / "spool" / "kept").glob("*/manifest"))
