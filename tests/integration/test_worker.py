"""Real worker processes: two stages over shared memory answer as transformers does, and failures have names."""

import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.core.plan import Plan
from teengined.core.sampling import SamplingParams
from teengined.modelpack.manifest import read_manifest
from teengined.protocol.worker_messages import (
    CloseStage,
    OpenStage,
    Ping,
    Pong,
    RunStep,
    SequenceOpen,
    SequencePart,
    Shutdown,
    StageClosed,
    StageOpened,
    StepDone,
    WorkerError,
)
from tests.fakes.tiny_models import build_tiny_model
from tests.fakes.worker_process import WorkerProcess

SPECS = tuple(DeviceSpec(id=f"cpu:{index}", driver="cpu", memory_bytes=64 << 20) for index in range(2))
PROMPT = (5, 9, 44, 17)
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("llama", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def package_dir(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    command = ["convert", str(source), "--store", str(store), "--name", "tiny", "--precision", "fp32"]
    subprocess.run([sys.executable, "-m", "teengined.modelpack", *command], check=True, stdout=subprocess.DEVNULL)
    return store / "tiny"


def two_stage_plan(package_dir: Path) -> Plan:
    manifest = read_manifest(package_dir)
    return plan_without_measuring(
        manifest,
        ((SPECS[0], 1), (SPECS[1], manifest.num_layers - 1)),
        resident_fraction=0.0,
        context_tokens=64,
        num_slots=2,
    )


def order(package_dir: Path, plan: Plan, index: int, directory: Path) -> OpenStage:
    """Return the order for one of two stages."""
    address = str(directory / "hop")
    return OpenStage(
        deployment_id="d1",
        package_dir=str(package_dir),
        stage=plan.stages[index],
        num_stages=2,
        context_tokens=64,
        num_slots=2,
        listen_address=address if index else "",
        listen_transport="shm",
        connect_address="" if index else address,
        connect_transport="shm",
        max_step_tokens=64,
        verify=True,
        timeout_seconds=20.0,
        read_threads=2,
        read_chunk_bytes=1 << 20,
        ring_slots=3,
        direct_io=False,
        num_blocks=8,
        block_tokens=16,
    )


def step(number: int, token_ids: tuple[int, ...], start: int, blocks: tuple[int, ...] = ()) -> RunStep:
    """Return a step of one sequence, which is opened by the step that brings its first block."""
    part = SequencePart(sequence_id=1, token_ids=token_ids, start_position=start, new_blocks=blocks, sample=True)
    opened = SequenceOpen(sequence_id=1, num_prompt_tokens=len(token_ids), sampling=SamplingParams())
    return RunStep(deployment_id="d1", step=number, parts=(part,), opened=(opened,) if blocks else ())


def test_two_workers_answer_as_transformers_does(source: Path, package_dir: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    plan, tokens, pending, start = two_stage_plan(package_dir), [], PROMPT, 0

    with WorkerProcess(tmp_path, SPECS[0]) as first, WorkerProcess(tmp_path, SPECS[1]) as last:
        for index, worker in enumerate((first, last)):
            worker.send(order(package_dir, plan, index, tmp_path))
        assert [type(worker.receive(StageOpened)) for worker in (first, last)] == [StageOpened, StageOpened]
        for number in range(NUM_TOKENS):
            for worker in (first, last):
                worker.send(step(number, pending, start, () if number else (5,)))
            start += len(pending)
            pending = (last.receive(StepDone).tokens[0].token_id,)
            tokens += pending
        for worker in (first, last):
            worker.send(CloseStage(deployment_id="d1"))
            assert isinstance(worker.receive(StageClosed), StageClosed)
            worker.send(Shutdown())
            assert worker.process.wait(20) == 0

    assert tokens == expected


def test_a_worker_answers_while_it_has_no_stage(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, SPECS[0]) as worker:
        worker.send(Ping(nonce=7))

        assert worker.hello.token == "a-token"
        assert worker.receive(Pong).nonce == 7


def test_a_step_of_an_unknown_deployment_is_an_error_and_the_worker_lives(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path, SPECS[0]) as worker:
        worker.send(step(0, (1,), 0))
        error = worker.receive(StepDone)
        worker.send(Ping(nonce=1))

        assert (error.code, error.step) == ("unknown_request", 0)
        assert worker.receive(Pong).nonce == 1


def test_a_step_with_the_prompts_of_many_choices_is_taken(tmp_path: Path) -> None:
    opened = tuple(
        SequenceOpen(
            sequence_id=choice, num_prompt_tokens=100_000, sampling=SamplingParams(), history=(128_000,) * 100_000
        )
        for choice in range(16)
    )
    with WorkerProcess(tmp_path, SPECS[0]) as worker:
        worker.send(RunStep(deployment_id="d1", step=0, parts=(), opened=opened))

        assert worker.receive(StepDone).code == "unknown_request"
        worker.send(Ping(nonce=1))
        assert worker.receive(Pong).nonce == 1


@pytest.mark.parametrize("resident", [None, 0.0], ids=["resident", "streamed"])
def test_a_flipped_bit_is_refused_and_the_unit_named(package_dir: Path, tmp_path: Path, resident: float | None) -> None:
    copy = tmp_path / "tiny"
    shutil.copytree(package_dir, copy)
    unit = next(unit for unit in read_manifest(copy).units if unit.id == "layer.0")
    with (copy / unit.file).open("r+b") as stream:
        stream.seek(unit.offset_bytes + 8)
        byte = stream.read(1)[0]
        stream.seek(unit.offset_bytes + 8)
        stream.write(bytes([byte ^ 1]))
    manifest = read_manifest(copy)
    plan = plan_without_measuring(
        manifest, ((SPECS[0], manifest.num_layers),), resident_fraction=resident, context_tokens=64
    )

    with WorkerProcess(tmp_path, SPECS[0]) as worker:
        worker.send(replace(order(copy, plan, 0, tmp_path), num_stages=1, connect_address=""))
        error = worker.receive(StageOpened)

    assert isinstance(error, WorkerError)
    assert error.code == "package_corrupt"
    assert "layer.0" in error.message


def test_a_stage_whose_neighbour_fails_says_so_at_once(package_dir: Path, tmp_path: Path) -> None:
    plan = two_stage_plan(package_dir)
    with WorkerProcess(tmp_path, SPECS[0]) as first, WorkerProcess(tmp_path, SPECS[1]) as last:
        for index, worker in enumerate((first, last)):
            worker.send(order(package_dir, plan, index, tmp_path))
            worker.receive(StageOpened) if index else None
        # Only the first is told of a token without a row in the embedding, and fails.
        first.send(step(0, (100_000,), 0, (5,)))
        last.send(step(0, PROMPT[:1], 0, (5,)))

        assert isinstance(first.receive(StepDone), WorkerError)
        assert last.receive(StepDone).code == "transport_failed"

        # Both go on, and several steps may wait for them.
        for number in (1, 2):
            for worker in (first, last):
                worker.send(step(number, PROMPT[number : number + 1], number))
        for number in (1, 2):
            for worker in (first, last):
                assert worker.receive(StepDone).step == number


def test_a_step_that_goes_beyond_its_blocks_fails_alone(package_dir: Path, tmp_path: Path) -> None:
    plan = two_stage_plan(package_dir)
    with WorkerProcess(tmp_path, SPECS[0]) as first, WorkerProcess(tmp_path, SPECS[1]) as last:
        for index, worker in enumerate((first, last)):
            worker.send(order(package_dir, plan, index, tmp_path))
        for worker in (first, last):
            worker.receive(StageOpened)
        for number, blocks in enumerate(((), (99,), (5,))):
            for worker in (first, last):
                worker.send(step(number, PROMPT, 0, blocks))
        answers = [[worker.receive(StepDone) for _ in range(3)] for worker in (first, last)]

    assert [[getattr(answer, "code", "") for answer in each] for each in answers] == [["internal", "internal", ""]] * 2
    assert "sequence 1 was not opened" in answers[0][0].message
    assert "got blocks (99,) of 8" in answers[0][1].message


def test_a_killed_neighbour_is_noticed_at_once(package_dir: Path, tmp_path: Path) -> None:
    plan = two_stage_plan(package_dir)
    with WorkerProcess(tmp_path, SPECS[0]) as first, WorkerProcess(tmp_path, SPECS[1]) as last:
        for index, worker in enumerate((first, last)):
            worker.send(order(package_dir, plan, index, tmp_path))
        for worker in (first, last):
            worker.receive(StageOpened)
        os.kill(first.process.pid, signal.SIGKILL)
        last.send(step(0, PROMPT, 0, (5,)))

        assert last.receive(StepDone).code == "peer_lost"


def test_a_worker_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from teengined.core.device import DeviceSpec\nfrom tests.fakes.worker_process import WorkerProcess\n"
        "worker = WorkerProcess(Path(sys.argv[1]), DeviceSpec(id='cpu:0', driver='cpu', memory_bytes=1 << 20))\n"
        "print(worker.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker_pid = int(parent.stdout.readline())
    descriptor = os.pidfd_open(worker_pid)

    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert select.select([descriptor], [], [], 20)[0] == [descriptor]
    os.close(descriptor)
