"""A deployment's stages in this process: the worker's own stage threads over the `inproc` transport, without a daemon.

For benchmarks and parity checks that want the arithmetic, the streaming and nothing else.
"""

import queue
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeadlineExceeded, error_class
from teengined.core.plan import Plan
from teengined.engine.stage_thread import StageThread
from teengined.interfaces.driver import Device
from teengined.interfaces.registry import PluginRegistry
from teengined.protocol.worker_messages import (
    CloseStage,
    ForgetSequences,
    OpenStage,
    RunStep,
    SequenceStep,
    StageClosed,
    StageOpened,
    StepDone,
    WorkerError,
)

__all__ = ["LocalPipeline"]

_DEPLOYMENT = "local"
_TIMEOUT_SECONDS = 120.0


class LocalPipeline:
    """Opens the stages of a plan and runs greedy generations over them, several sequences in one batch."""

    def __init__(
        self,
        package_dir: Path,
        plan: Plan,
        devices: Sequence[DeviceSpec],
        registry: PluginRegistry,
        *,
        direct_io: bool = True,
    ) -> None:
        """Open every stage; returns when all are ready."""
        self._plan = plan
        self._replies: queue.Queue[Any] = queue.Queue()
        self._step = 0
        self.last_steps: list[StepDone] = []
        self.step_seconds: list[float] = []
        specs = {spec.id: spec for spec in devices}
        self._devices: list[Device] = []
        self._stages: list[StageThread] = []
        for stage in plan.stages:
            device = registry.driver(specs[stage.device_id].driver).open(specs[stage.device_id])
            self._devices.append(device)
            order = self._order(package_dir, stage.index, direct_io)
            self._stages.append(StageThread(order, device, registry, self._replies.put))
        for _ in self._stages:
            self._wait_for(StageOpened)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Return the greedy continuations of `prompts`, `num_tokens` each; end tokens are not heeded."""
        positions = [0] * len(prompts)
        pending = [tuple(prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        self.last_steps, self.step_seconds = [], []
        for _ in range(num_tokens):
            done = self._run(
                tuple(
                    SequenceStep(sequence_id=index, token_ids=ids, start_position=positions[index], sample=True)
                    for index, ids in enumerate(pending)
                )
            )
            for token in done.tokens:
                positions[token.sequence_id] += len(pending[token.sequence_id])
                pending[token.sequence_id] = (token.token_id,)
                answers[token.sequence_id].append(token.token_id)
        self._submit(ForgetSequences(deployment_id=_DEPLOYMENT, sequence_ids=tuple(range(len(prompts)))))
        return answers

    def close(self) -> None:
        """Close stages and devices."""
        self._submit(CloseStage(deployment_id=_DEPLOYMENT))
        for _ in self._stages:
            self._wait_for(StageClosed)
        for device in self._devices:
            device.close()

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close at the end of the context."""
        self.close()

    def _order(self, package_dir: Path, index: int, direct_io: bool) -> OpenStage:
        stage, num_stages = self._plan.stages[index], len(self._plan.stages)
        address = f"{_DEPLOYMENT}-{id(self)}"
        return OpenStage(
            deployment_id=_DEPLOYMENT,
            package_dir=str(package_dir),
            stage=replace(stage, transport="inproc" if index + 1 < num_stages else ""),
            num_stages=num_stages,
            context_tokens=self._plan.context_tokens,
            num_slots=self._plan.num_slots,
            listen_address=f"{address}-{index}" if index else "",
            listen_transport="inproc",
            connect_address=f"{address}-{index + 1}" if index + 1 < num_stages else "",
            connect_transport="inproc",
            max_step_tokens=512,
            verify=True,
            timeout_seconds=_TIMEOUT_SECONDS,
            read_threads=4,
            read_chunk_bytes=4 << 20,
            ring_slots=3,
            direct_io=direct_io,
        )

    def _run(self, sequences: tuple[SequenceStep, ...]) -> StepDone:
        step = RunStep(deployment_id=_DEPLOYMENT, step=self._step, sequences=sequences)
        self._step += 1
        start = time.perf_counter()
        self._submit(step)
        parts = [self._wait_for(StepDone) for _ in self._stages]
        self.step_seconds.append(time.perf_counter() - start)
        self.last_steps.extend(parts)
        return next(part for part in parts if part.stage_index == len(self._stages) - 1)

    def _submit(self, order: RunStep | ForgetSequences | CloseStage) -> None:
        for stage in self._stages:
            stage.submit(order)

    def _wait_for(self, kind: type[Any]) -> Any:
        while True:
            try:
                reply = self._replies.get(timeout=_TIMEOUT_SECONDS)
            except queue.Empty as error:
                raise DeadlineExceeded(f"no {kind.__name__} within {_TIMEOUT_SECONDS:g} s") from error
            if isinstance(reply, WorkerError):
                raise error_class(reply.code)(reply.message, hint=reply.hint)
            if isinstance(reply, kind):
                return reply
