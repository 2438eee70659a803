"""A worker program without torch: speaks the worker protocol, repeats each prompt, and misbehaves on demand.

The n-th token of an answer is the n-th token of its prompt, round and round, read through the block table; choice c
begins c tokens later. So a test knows every answer, and a wrong block gives a wrong one. What the daemon sends is held
against what went before; what cannot be is a step error. The most probable token is the one after the last, by its id.
A prompt that begins with one of the bytes below makes the last stage misbehave when the third token of the answer is
due. `--order PATH` names a file whose content, if there is one, is an order for the next start.
"""

import argparse
import ctypes
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from teengined.core.device import DeviceSpec
from teengined.core.records import from_mapping
from teengined.core.request import Goal, TokenLogprobs
from teengined.protocol.codec import Envelope, decode, encode
from teengined.protocol.worker_messages import (
    WORKER_LIMITS,
    WORKER_MESSAGES,
    CloseStage,
    OpenStage,
    Ping,
    Pong,
    PooledVector,
    PromptLogprobs,
    RunStep,
    SampledToken,
    SequencePart,
    Shutdown,
    SpoolReport,
    StageClosed,
    StageOpened,
    StageProgress,
    StepDone,
    WorkerError,
    WorkerHello,
)
from tests.fakes.fake_kv import FakeKV, Inconsistent, OpenSequence

DIE, HANG, FAIL, FREEZE, BREAK, FAULT = 1, 2, 3, 4, 5, 6
STREAMED_BYTES = 1000
LIKELY, UNLIKELY = -0.25, -4.0
NUM_BYTES = 256


class FakeWorker:
    """One device's stages, and the KV of each."""

    def __init__(self, spec: DeviceSpec, step_seconds: float) -> None:
        self.spec = spec
        self.step_seconds = step_seconds
        self.stages: dict[str, OpenStage] = {}
        self.kv: dict[str, FakeKV] = {}
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.connect(os.environ["TEENGINE_WORKER_ENDPOINT"])

    def send(self, message: Any) -> None:
        self.socket.send_multipart(encode(Envelope(correlation=0, message=message), WORKER_MESSAGES, WORKER_LIMITS))

    def serve(self) -> None:
        token = os.environ["TEENGINE_WORKER_TOKEN"]
        self.send(WorkerHello(token=token, device_id=self.spec.id, pid=os.getpid(), library_versions=("fake 1",)))
        while True:
            message = decode(self.socket.recv_multipart(), WORKER_MESSAGES, WORKER_LIMITS).message
            match message:
                case Ping():
                    self.send(Pong(nonce=message.nonce, rss_bytes=1, allocated_bytes=0))
                case OpenStage():
                    self.open(message)
                case RunStep():
                    self.run(message)
                case CloseStage():
                    self.stages.pop(message.deployment_id, None)
                    self.send(StageClosed(deployment_id=message.deployment_id))
                case Shutdown():
                    break
                case _:
                    raise AssertionError(message)
        self.socket.close()
        self.context.term()

    def open(self, order: OpenStage) -> None:
        if not (Path(order.package_dir) / "manifest.json").is_file():
            self.fail(order.deployment_id, None, "no such package")
            return
        self.stages[order.deployment_id] = order
        self.kv[order.deployment_id] = FakeKV(order)
        where: dict[str, Any] = {"deployment_id": order.deployment_id, "stage_index": order.stage.index}
        self.send(StageProgress(**where, done_bytes=5, total_bytes=10))
        self.send(StageOpened(**where, allocated_bytes=order.stage.resident_bytes))

    def run(self, step: RunStep) -> None:
        order, kv = self.stages[step.deployment_id], self.kv[step.deployment_id]
        time.sleep(self.step_seconds)
        try:
            kv.begin(step)
            sequences = [kv.write(part) for part in step.parts]
            is_last = order.stage.index == order.num_stages - 1
            answers = self.answers(step, sequences) if is_last else {}
        except Inconsistent as problem:
            self.fail(step.deployment_id, step.step, str(problem))
            return
        if answers is None:
            return
        done = StepDone(
            deployment_id=step.deployment_id,
            stage_index=order.stage.index,
            step=step.step,
            tokens=answers.get("tokens", ()),
            seconds=max(0.001, self.step_seconds),
            compute_seconds=0.001,
            stall_seconds=0.0,
            streamed_bytes=STREAMED_BYTES,
            prompt_logprobs=answers.get("prompt_logprobs", ()),
            vectors=answers.get("vectors", ()),
        )
        self.send(done)
        if step.moves:
            self.send(SpoolReport(deployment_id=step.deployment_id, stage_index=order.stage.index, done=step.moves))

    def answers(self, step: RunStep, sequences: list[OpenSequence]) -> dict[str, tuple[Any, ...]] | None:
        """Return what the last stage has to say; None where it misbehaved instead."""
        kv = self.kv[step.deployment_id]
        found: dict[str, list[Any]] = {"tokens": [], "prompt_logprobs": [], "vectors": []}
        for part, sequence in zip(step.parts, sequences, strict=True):
            opened = sequence.opened
            if told := prompt_logprobs(kv, sequence, part):
                found["prompt_logprobs"].append(told)
            if opened.goal is Goal.EMBED and sequence.length == opened.num_prompt_tokens:
                found["vectors"].append(PooledVector(sequence_id=opened.sequence_id, vector=vector_of(kv, sequence)))
            for token in self.next_tokens(step, sequence, part) if part.sample else ():
                if token is None:
                    return None
                found["tokens"].append(token)
        return {name: tuple(items) for name, items in found.items()}

    def next_tokens(self, step: RunStep, sequence: OpenSequence, part: SequencePart) -> Iterator[SampledToken | None]:
        """Yield the next token of the answer, and those that follow while the guesses are right."""
        end = sequence.length
        for length in range(end - sequence.num_guessed, end + 1):
            sequence.length = length
            token = self.next_token(step, sequence)
            yield token
            guess = part.token_ids[length - part.start_position] if length < end else None
            if token is None or token.token_id != guess:
                break
        sequence.num_guessed = 0

    def next_token(self, step: RunStep, sequence: OpenSequence) -> SampledToken | None:
        """Return the next token of the answer, or misbehave and return None."""
        kv, opened = self.kv[step.deployment_id], sequence.opened
        num_answered = sequence.length - opened.num_prompt_tokens
        first = kv.read(sequence, 0)
        if num_answered == 2 and first == FAULT:
            return SampledToken(
                sequence_id=opened.sequence_id, token_id=-1, fault="numerical_fault", message="logits are not numbers"
            )
        if num_answered == 2 and first in (DIE, HANG, FAIL, FREEZE, BREAK):
            self.misbehave(first, step)
            return None
        token = kv.read(sequence, (num_answered + opened.choice) % opened.num_prompt_tokens)
        logprobs = None if opened.sampling.logprobs is None else logprobs_of(token, token, opened.sampling.logprobs)
        return SampledToken(sequence_id=opened.sequence_id, token_id=token, logprobs=logprobs)

    def misbehave(self, how: int, step: RunStep) -> None:
        if how == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == FREEZE:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif how == FAIL:
            self.fail(step.deployment_id, step.step, "this step was meant to fail")
        elif how == BREAK:
            self.fail(step.deployment_id, step.step, "the package changed on disk", code="package_invalid")

    def fail(self, deployment_id: str, step: int | None, message: str, code: str = "internal") -> None:
        error = WorkerError(deployment_id=deployment_id, step=step, code=code, message=message, hint="")
        self.send(error)


def prompt_logprobs(kv: FakeKV, sequence: OpenSequence, part: SequencePart) -> PromptLogprobs | None:
    """Return the log-probabilities of the part's tokens that are asked for."""
    opened = sequence.opened
    num_top = opened.sampling.prompt_logprobs
    if num_top is None:
        return None
    first = max(1, opened.score_start, part.start_position)
    last = min(sequence.length, opened.num_prompt_tokens)
    told = tuple(
        logprobs_of(kv.read(sequence, position), (kv.read(sequence, position - 1) + 1) % NUM_BYTES, num_top)
        for position in range(first, last)
    )
    return PromptLogprobs(sequence_id=opened.sequence_id, start_position=first, logprobs=told) if told else None


def logprobs_of(token: int, likely: int, num_top: int) -> TokenLogprobs:
    """Return what is told of a token where `likely` is the most probable one."""
    top = tuple(((likely + rank) % NUM_BYTES, LIKELY - rank) for rank in range(num_top))
    return TokenLogprobs(token_id=token, logprob=LIKELY if token == likely else UNLIKELY, top=top)


def vector_of(kv: FakeKV, sequence: OpenSequence) -> bytes:
    """Return first token, last token, number of tokens, and 1 for mean pooling."""
    length = sequence.length
    values = kv.read(sequence, 0), kv.read(sequence, length - 1), length, sequence.opened.pooling == "mean"
    return struct.pack("<4f", *map(float, values))


def order_in(path: Path | None) -> str:
    return path.read_text() if path is not None and path.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--order", type=Path)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    flags = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(os.environ["TEENGINE_WORKER_PARENT"]):
        sys.exit(1)
    if order_in(flags.order) == "die":
        sys.exit(3)
    while order_in(flags.order) == "say nothing":
        time.sleep(0.02)
    spec = from_mapping(DeviceSpec, json.loads(os.environ["TEENGINE_WORKER_SPEC"]))
    FakeWorker(spec, flags.step_seconds).serve()


if __name__ == "__main__":
    main()
