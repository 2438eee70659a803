"""A worker program without torch: speaks the worker protocol, repeats each prompt, and misbehaves on demand.

The n-th token of an answer is the n-th token of its prompt, round and round, so a test knows every answer. What the
daemon sends is held against what went before; a wrong position or token is a step error. A prompt that begins with
one of the bytes below makes the last stage misbehave when the third token of the answer is due. `--order PATH` names
a file whose content, if there is one, is an order for the next start.
"""

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import zmq

from teengined.core.device import DeviceSpec
from teengined.core.records import from_mapping
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.worker_messages import (
    WORKER_MESSAGES,
    CloseStage,
    ForgetSequences,
    OpenStage,
    Ping,
    Pong,
    RunStep,
    SampledToken,
    SequenceStep,
    Shutdown,
    StageClosed,
    StageOpened,
    StageProgress,
    StepDone,
    WorkerError,
    WorkerHello,
)

DIE, HANG, FAIL, FREEZE, BREAK = 1, 2, 3, 4, 5
STREAMED_BYTES = 1000


class FakeWorker:
    """One device's stages, and the tokens of each sequence."""

    def __init__(self, spec: DeviceSpec, step_seconds: float) -> None:
        self.spec = spec
        self.step_seconds = step_seconds
        self.stages: dict[str, OpenStage] = {}
        self.known: dict[tuple[str, int], list[int]] = {}
        self.prompts: dict[tuple[str, int], int] = {}
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.connect(os.environ["TEENGINE_WORKER_ENDPOINT"])

    def send(self, message: Any) -> None:
        self.socket.send_multipart(encode(Envelope(correlation=0, message=message), WORKER_MESSAGES, CodecLimits()))

    def serve(self) -> None:
        token = os.environ["TEENGINE_WORKER_TOKEN"]
        self.send(WorkerHello(token=token, device_id=self.spec.id, pid=os.getpid(), library_versions=("fake 1",)))
        while True:
            message = decode(self.socket.recv_multipart(), WORKER_MESSAGES, CodecLimits()).message
            match message:
                case Ping():
                    self.send(Pong(nonce=message.nonce, rss_bytes=1, allocated_bytes=0))
                case OpenStage():
                    self.open(message)
                case RunStep():
                    self.run(message)
                case ForgetSequences():
                    for sequence_id in message.sequence_ids:
                        self.known.pop((message.deployment_id, sequence_id), None)
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
        where: dict[str, Any] = {"deployment_id": order.deployment_id, "stage_index": order.stage.index}
        self.send(StageProgress(**where, done_bytes=5, total_bytes=10))
        self.send(StageOpened(**where, allocated_bytes=order.stage.resident_bytes))

    def run(self, step: RunStep) -> None:
        order = self.stages[step.deployment_id]
        time.sleep(self.step_seconds)
        tokens: list[SampledToken] = []
        for part in step.sequences:
            problem = self.learn(step.deployment_id, part)
            if problem:
                self.fail(step.deployment_id, step.step, problem)
                return
            if part.sample and order.stage.index == order.num_stages - 1:
                token = self.next_token(step, part)
                if token is None:
                    return
                tokens.append(SampledToken(sequence_id=part.sequence_id, token_id=token))
        self.send(
            StepDone(
                deployment_id=step.deployment_id,
                stage_index=order.stage.index,
                step=step.step,
                tokens=tuple(tokens),
                seconds=0.001,
                compute_seconds=0.001,
                stall_seconds=0.0,
                streamed_bytes=STREAMED_BYTES,
            )
        )

    def learn(self, deployment_id: str, part: SequenceStep) -> str:
        """Add the part's tokens to what is known of the sequence; return what is wrong with it."""
        key = (deployment_id, part.sequence_id)
        if part.start_position == 0:
            self.known[key] = []
        known = self.known.get(key)
        if known is None or part.start_position != len(known):
            return f"sequence {part.sequence_id} continues at {part.start_position}, not at {known and len(known)}"
        known.extend(part.token_ids)
        if part.sample and key not in self.prompts:
            self.prompts[key] = len(known)
        return ""

    def next_token(self, step: RunStep, part: SequenceStep) -> int | None:
        """Return the next token of the answer, or misbehave and return None."""
        key = (step.deployment_id, part.sequence_id)
        known, num_prompt = self.known[key], self.prompts[key]
        num_answered = len(known) - num_prompt
        if num_answered == 2 and known[0] in (DIE, HANG, FAIL, FREEZE, BREAK):
            self.misbehave(known[0], step)
            return None
        return known[num_answered % num_prompt]

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
