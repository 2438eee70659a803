"""A deployment's stages in this process: the worker's own stage threads over the `inproc` transport, without a daemon.

For benchmarks and parity checks that want the arithmetic, the streaming and nothing else.
"""

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from teengined.core.device import DeviceSpec
from teengined.core.errors import DeadlineExceeded, TeengineError, error_class
from teengined.core.plan import Plan
from teengined.core.sampling import SamplingParams
from teengined.engine.stage_thread import StageThread
from teengined.interfaces.driver import Device
from teengined.interfaces.registry import PluginRegistry
from teengined.protocol.worker_messages import (
    CloseStage,
    OpenStage,
    RunStep,
    SequenceOpen,
    SequencePart,
    SpoolReport,
    StageClosed,
    StageOpened,
    StepDone,
    WorkerError,
)

__all__ = ["LocalPipeline", "PipelineOptions"]

_DEPLOYMENT = "local"
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """How stages are opened, where it is not the plan that says so."""

    direct_io: bool = True
    block_tokens: int = 16
    kv_dtype: str = "auto"
    numerics: str = "default"
    max_step_tokens: int = 512
    expert_policy: str = "auto"
    expert_guesses: int = 0
    num_blocks: int = 0
    """0: as many as hold every slot at the full context."""
    num_host_slots: int = 0
    num_disk_slots: int = 0
    spool_dir: str = ""
    """Existing, for spool files of the stages."""


class LocalPipeline:
    """Opens the stages of a plan and runs greedy generations over them, several sequences in one batch."""

    def __init__(
        self,
        package_dir: Path,
        plan: Plan,
        devices: Sequence[DeviceSpec],
        registry: PluginRegistry,
        options: PipelineOptions = PipelineOptions(),
    ) -> None:
        """Open every stage; returns when all are ready."""
        self._plan = plan
        self._options = options
        self.blocks_per_sequence = -(-plan.context_tokens // options.block_tokens)
        self._replies: queue.Queue[Any] = queue.Queue()
        self._early: dict[int | None, list[Any]] = {}
        self.spool_reports: list[SpoolReport] = []
        self._step = 0
        self.last_steps: list[StepDone] = []
        self.step_seconds: list[float] = []
        specs = {spec.id: spec for spec in devices}
        self._devices: list[Device] = []
        self._stages: list[StageThread] = []
        for stage in plan.stages:
            device = registry.driver(specs[stage.device_id].driver).open(specs[stage.device_id])
            self._devices.append(device)
            order = self._order(package_dir, stage.index)
            self._stages.append(StageThread(order, device, registry, self._replies.put))
        for _ in self._stages:
            self._wait_for(StageOpened)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Return the greedy continuations of `prompts`, `num_tokens` each; end tokens are not heeded."""
        positions = [0] * len(prompts)
        pending = [tuple(prompt) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        self.last_steps, self.step_seconds = [], []
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        opened = tuple(
            SequenceOpen(sequence_id=index, num_prompt_tokens=len(prompt), sampling=sampling)
            for index, prompt in enumerate(prompts)
        )
        for number in range(num_tokens):
            parts = tuple(
                SequencePart(
                    sequence_id=index,
                    token_ids=ids,
                    start_position=positions[index],
                    new_blocks=() if number else self.blocks_of(index),
                    sample=True,
                )
                for index, ids in enumerate(pending)
            )
            for token in self.run(parts, opened=() if number else opened).tokens:
                positions[token.sequence_id] += len(pending[token.sequence_id])
                pending[token.sequence_id] = (token.token_id,)
                answers[token.sequence_id].append(token.token_id)
        self.run((), closed=tuple(range(len(prompts))))
        return answers

    def blocks_of(self, index: int) -> tuple[int, ...]:
        """Return the blocks that the sequence in slot `index` may use, enough for the whole context."""
        first = index * self.blocks_per_sequence
        return tuple(range(first, first + self.blocks_per_sequence))

    def run(self, parts: tuple[SequencePart, ...], **changes: Any) -> StepDone:
        """Run one step; `changes` are further fields of `RunStep`. Return the last stage's answer.

        Raises:
            TeengineError: a stage failed; the first to say so is told.
        """
        start = time.perf_counter()
        done = self.receive(self.send(parts, **changes))
        if parts:
            self.step_seconds.append(time.perf_counter() - start)
        return done

    def send(self, parts: tuple[SequencePart, ...], **changes: Any) -> int:
        """Give the stages a step and return its number; several may be under way."""
        step = RunStep(deployment_id=_DEPLOYMENT, step=self._step, parts=parts, **changes)
        self._step += 1
        self._submit(step)
        return step.step

    def receive(self, step: int) -> StepDone:
        """Wait until every stage is done with a step. Steps are asked for in the order of their numbers."""
        replies = self._early.pop(step, [])
        while len(replies) < len(self._stages):
            reply = self._next_reply(f"end of step {step}")
            if isinstance(reply, StepDone | WorkerError):
                (replies if reply.step == step else self._early.setdefault(reply.step, [])).append(reply)
        for reply in replies:
            if isinstance(reply, WorkerError):
                raise _error(reply)
        self.last_steps.extend(replies)
        return next(each for each in replies if each.stage_index == len(self._stages) - 1)

    def wait_for_spool(self) -> None:
        """Wait until a stage tells of moves."""
        while not self.spool_reports:
            self._next_reply(SpoolReport.__name__)

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

    def _order(self, package_dir: Path, index: int) -> OpenStage:
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
            max_step_tokens=self._options.max_step_tokens,
            verify=True,
            timeout_seconds=_TIMEOUT_SECONDS,
            read_threads=4,
            read_chunk_bytes=4 << 20,
            ring_slots=3,
            direct_io=self._options.direct_io,
            num_blocks=self._options.num_blocks or self._plan.num_slots * self.blocks_per_sequence,
            block_tokens=self._options.block_tokens,
            kv_dtype=self._options.kv_dtype,
            numerics=self._options.numerics,
            expert_policy=self._options.expert_policy,
            expert_guesses=self._options.expert_guesses,
            num_host_slots=self._options.num_host_slots,
            num_disk_slots=self._options.num_disk_slots,
            spool_path=str(Path(self._options.spool_dir) / f"stage{index}") if self._options.spool_dir else "",
        )

    def _submit(self, order: RunStep | CloseStage) -> None:
        for stage in self._stages:
            stage.submit(order)

    def _wait_for(self, kind: type[Any]) -> Any:
        while True:
            reply = self._next_reply(kind.__name__)
            if isinstance(reply, WorkerError):
                raise _error(reply)
            if isinstance(reply, kind):
                return reply

    def _next_reply(self, wanted: str) -> Any:
        try:
            reply = self._replies.get(timeout=_TIMEOUT_SECONDS)
        except queue.Empty as error:
            raise DeadlineExceeded(f"no {wanted} within {_TIMEOUT_SECONDS:g} s") from error
        if isinstance(reply, SpoolReport):
            self.spool_reports.append(reply)
        return reply


def _error(told: WorkerError) -> TeengineError:
    return error_class(told.code)(told.message, hint=told.hint)
