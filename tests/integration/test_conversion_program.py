"""The converter as the program that the command line starts: events, exit codes, interruption, conflict."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from teengined.modelpack.manifest import read_manifest
from teengined.modelpack.verify import verify_package
from teengined.modelpack.workspace import open_workspace
from tests.fakes.conversion_process import kill_after, num_recorded, run_program, start_program, wait_for
from tests.fakes.converted import convert_directory
from tests.fakes.tiny_models import build_tiny_model


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of so many layers that its conversion can be caught in the middle."""
    return build_tiny_model("llama", tmp_path_factory.mktemp("long") / "model", num_hidden_layers=120)


def test_a_conversion_reports_progress_and_its_result(tmp_path: Path) -> None:
    source = build_tiny_model("qwen3", tmp_path / "some model")
    outcome = run_program("convert", source, "--store", tmp_path / "store", "--precision", "int8")
    assert outcome.status == 0
    assert {event["event"] for event in outcome.events[:-1]} == {"progress"}
    assert (outcome.last["event"], outcome.last["name"], outcome.last["precision"]) == ("done", "some-model", "int8")
    assert outcome.events[-2]["done"] == outcome.events[-2]["total"] > 0
    verified = run_program("verify", outcome.last["path"])
    assert (verified.status, verified.last["event"]) == (0, "done")


def test_every_failure_is_an_error_event_with_its_exit_code(tmp_path: Path) -> None:
    absent = run_program("convert", tmp_path / "absent.gguf", "--store", tmp_path / "store")
    assert (absent.status, absent.last["event"], absent.last["code"]) == (1, "error", "source_invalid")
    wrong = run_program("convert", "--no-such-flag")
    assert (wrong.status, wrong.last["code"]) == (2, "invalid_request")
    none = run_program("verify", tmp_path)
    assert (none.status, none.last["code"]) == (1, "package_invalid")


def test_a_flipped_bit_is_found_by_verify_and_the_unit_named(tmp_path: Path) -> None:
    manifest = convert_directory(build_tiny_model("llama", tmp_path / "model"), tmp_path / "store")
    unit = manifest.units[2]
    path = tmp_path / "store" / "tiny" / unit.file
    content = bytearray(path.read_bytes())
    content[unit.offset_bytes + 100] ^= 4
    path.write_bytes(content)
    outcome = run_program("verify", tmp_path / "store" / "tiny")
    assert (outcome.status, outcome.last["code"]) == (1, "package_corrupt")
    assert f"unit {unit.id}" in outcome.last["message"]


def test_a_second_converter_of_the_same_name_is_told_so(tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "model")
    with open_workspace(tmp_path / "store", "mine"):
        outcome = run_program("convert", source, "--store", tmp_path / "store", "--name", "mine")
    assert (outcome.status, outcome.last["code"]) == (9, "conflict")
    assert convert_directory(source, tmp_path / "store", name="mine").name == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_conversion_cut_short_goes_on_where_it_was(number: signal.Signals, long_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start_program("convert", long_model, "--store", store, "--name", "long")
    status = kill_after(process, lambda: num_recorded(store, "long") >= 5, number)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert not (store / "long").exists()
    finished = num_recorded(store, "long")
    assert 5 <= finished < 122
    first = (store / ".converting-long" / "units" / "embedding.safetensors").stat()
    manifest = convert_directory(long_model, store, name="long")
    assert (store / "long" / "units" / "embedding.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    assert [path.name for path in store.iterdir()] == ["long"]
    assert verify_package(store / "long") == manifest
    afresh = convert_directory(long_model, tmp_path / "other", name="long")
    assert [unit.digest for unit in afresh.units] == [unit.digest for unit in manifest.units]


def test_a_file_damaged_between_the_runs_is_written_again(long_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start_program("convert", long_model, "--store", store, "--name", "long")
    kill_after(process, lambda: num_recorded(store, "long") >= 3, signal.SIGKILL)
    damaged = store / ".converting-long" / "units" / "embedding.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    manifest = convert_directory(long_model, store, name="long")
    assert verify_package(store / "long") == manifest


def test_other_options_do_not_go_on_with_what_is_there(long_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start_program("convert", long_model, "--store", store, "--name", "long", "--precision", "fp32")
    kill_after(process, lambda: num_recorded(store, "long") >= 3, signal.SIGKILL)
    manifest = convert_directory(long_model, store, name="long", precision="bf16")
    assert {unit.precision for unit in manifest.units} == {"bf16"}
    assert verify_package(store / "long") == manifest


def test_the_converter_does_not_outlive_its_parent(long_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    parent_code = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-m', 'teengined.modelpack', *sys.argv[1:]], "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); print(child.pid, flush=True); child.wait()"
    )
    arguments = ["convert", str(long_model), "--store", str(store), "--name", "long"]
    parent = subprocess.Popen([sys.executable, "-c", parent_code, *arguments], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    kill_after(parent, lambda: num_recorded(store, "long") >= 3, signal.SIGKILL)
    wait_for(lambda: not is_running(child))
    assert not (store / "long").exists()


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_older_package_stays_until_the_new_one_is_complete(long_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    older = convert_directory(build_tiny_model("llama", tmp_path / "older"), store, name="long")
    process = start_program("convert", long_model, "--store", store, "--name", "long")
    kill_after(process, lambda: num_recorded(store, "long") >= 3, signal.SIGKILL)
    assert verify_package(store / "long") == older
    convert_directory(long_model, store, name="long")
    assert read_manifest(store / "long").num_layers == 120
