"""One opened stage in a worker: its weights, its model, its sequences' KV, and its ends of the transports."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from teengined.core.errors import TransportError
from teengined.engine.sampler import sample, uniform
from teengined.interfaces.driver import Device
from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.transport import Receiver, Sender, TransportOptions
from teengined.modelpack.manifest import read_manifest
from teengined.models.batch import BatchEntry, StepBatch
from teengined.models.kv import SequenceKV
from teengined.models.skeleton import TORCH_DTYPES, build_skeleton, read_config
from teengined.models.stage_model import StageModel
from teengined.protocol.worker_messages import OpenStage, RunStep, SampledToken, SequenceStep, StepDone
from teengined.weights.options import StreamOptions
from teengined.weights.stage_weights import StageWeights
from teengined.weights.statistics import StreamStatistics

__all__ = ["OpenedStage"]

# An activation without rows tells the next stage that the step failed here, so that it need not wait out its deadline.
_FAILED_STEP = torch.empty(0)
# The ring of a healthy transport has a free slot at once; a dead one is not worth the deadline of a step.
_TELL_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Timing:
    """The clock and the time lost waiting, at the start of a step's own work."""

    start_seconds: float
    stall_seconds: float


class OpenedStage:
    """Runs the steps of one stage, in order, on one thread. `open` before, `close` after."""

    def __init__(self, order: OpenStage, device: Device, registry: PluginRegistry) -> None:
        """Remember the order; nothing is read or allocated before `open`."""
        self._order = order
        self._device = device
        self._registry = registry
        self._sequences: dict[int, SequenceKV] = {}
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._weights: StageWeights | None = None
        self._model: StageModel | None = None
        self._told = StreamStatistics()

    def open(self, on_progress: Callable[[int, int], None]) -> None:
        """Listen, read the resident units, build the model, then connect to the next stage.

        Raises:
            TeengineError: the package, the device or a neighbour is not as promised; what was taken is given back.
        """
        try:
            self._open(on_progress)
        except BaseException:
            self.close()
            raise

    def _open(self, on_progress: Callable[[int, int], None]) -> None:
        order, package_dir = self._order, Path(self._order.package_dir)
        manifest = read_manifest(package_dir)
        transport_options = TransportOptions(
            max_message_bytes=order.max_step_tokens * manifest.hidden_size * 4, num_slots=2
        )
        if order.listen_address:
            transport = self._registry.transport(order.listen_transport)
            self._receiver = transport.listen(order.listen_address, transport_options)
        self._weights = StageWeights(
            package_dir=package_dir,
            manifest=manifest,
            stage=order.stage,
            device=self._device,
            options=StreamOptions(
                read_threads=order.read_threads,
                read_chunk_bytes=order.read_chunk_bytes,
                ring_slots=order.ring_slots,
                direct_io=order.direct_io,
                verify=order.verify,
                timeout_seconds=order.timeout_seconds,
            ),
        )
        skeleton = build_skeleton(
            read_config(package_dir),
            compute_dtype=TORCH_DTYPES[order.stage.compute_dtype],
            device=self._device.torch_device,
        )
        self._weights.open(on_progress)
        if order.verify:
            self._read_every_group(self._weights)
        self._told = self._weights.statistics
        self._model = StageModel(
            skeleton=skeleton,
            manifest=manifest,
            stage=order.stage,
            weights=self._weights,
            precisions=self._registry.precisions(),
        )
        if order.connect_address:
            transport = self._registry.transport(order.connect_transport)
            self._sender = transport.connect(
                order.connect_address, transport_options, timeout_seconds=order.timeout_seconds
            )

    def _read_every_group(self, weights: StageWeights) -> None:
        """Go round the ring once: a unit is checked when it is first read, and a damaged one must refuse the load."""
        for group in weights.groups:
            weights.acquire(group.index)
            weights.release(group.index)

    def run(self, step: RunStep) -> StepDone:
        """Run one step and pass it on.

        Raises:
            TeengineError: this stage or one before it failed; stages after it are told.
        """
        try:
            return self._run(step)
        except BaseException:
            self._tell_next_stage(step)
            raise

    def _tell_next_stage(self, step: RunStep) -> None:
        """Pass the failure on. A neighbour that cannot be reached notices by itself, and must not hide the cause."""
        if self._sender is None:
            return
        try:
            self._sender.send(step.step, _FAILED_STEP, timeout_seconds=_TELL_SECONDS)
        except TransportError as error:
            logger.warning("the next stage was not told that step %d failed: %s", step.step, error.message)

    def _run(self, step: RunStep) -> StepDone:
        assert self._model is not None, "a step came before the stage was open"
        incoming = self._incoming(step)
        timing = self._mark()
        wanted = [sequence.sample for sequence in step.sequences]
        batch = StepBatch(entries=tuple(self._entry(sequence) for sequence in step.sequences))
        output = self._model.forward(batch, incoming, batch.last_rows(wanted))
        tokens: tuple[SampledToken, ...] = ()
        if self._order.stage.has_head:
            tokens = self._sample([sequence for sequence in step.sequences if sequence.sample], output)
        done = self._done(step, tokens, timing)
        if self._sender is not None:
            self._sender.send(step.step, output.cpu().contiguous(), timeout_seconds=self._order.timeout_seconds)
        return done

    def forget(self, sequence_ids: Sequence[int]) -> None:
        """Free the KV of sequences; unknown ids are sequences that never reached this stage."""
        for sequence_id in sequence_ids:
            self._sequences.pop(sequence_id, None)

    def close(self) -> None:
        """Give back memory, files and connections. Safe to call twice."""
        for part in (self._sender, self._receiver, self._weights):
            if part is not None:
                part.close()
        self._sequences.clear()
        self._model = self._weights = self._sender = self._receiver = None

    def _incoming(self, step: RunStep) -> torch.Tensor:
        device = self._device.torch_device
        if self._receiver is None:
            ids = [token_id for sequence in step.sequences for token_id in sequence.token_ids]
            return torch.tensor(ids, dtype=torch.long, device=device)
        activation = self._receiver.recv(timeout_seconds=self._order.timeout_seconds)
        while activation.tag < step.step:  # left over from a step that timed out here
            activation = self._receiver.recv(timeout_seconds=self._order.timeout_seconds)
        if activation.tag != step.step:
            raise TransportError(f"step {step.step} got the activation of step {activation.tag}")
        if activation.tensor.numel() == 0:
            raise TransportError(f"an earlier stage failed in step {step.step}")
        return activation.tensor.to(device)

    def _entry(self, sequence: SequenceStep) -> BatchEntry:
        if sequence.start_position == 0:
            self._sequences[sequence.sequence_id] = SequenceKV(context_tokens=self._order.context_tokens)
        return BatchEntry(
            kv=self._sequences[sequence.sequence_id],
            num_tokens=len(sequence.token_ids),
            start_position=sequence.start_position,
        )

    def _sample(self, sequences: Sequence[SequenceStep], logits_WV: torch.Tensor) -> tuple[SampledToken, ...]:
        logits_WV = logits_WV.cpu()
        return tuple(
            SampledToken(sequence_id=sequence.sequence_id, token_id=_draw(sequence, logits_V))
            for sequence, logits_V in zip(sequences, logits_WV, strict=True)
        )

    def _statistics(self) -> StreamStatistics:
        assert self._weights is not None
        return self._weights.statistics

    def _mark(self) -> _Timing:
        statistics = self._statistics()
        return _Timing(time.perf_counter(), statistics.stall_seconds)

    def _done(self, step: RunStep, tokens: tuple[SampledToken, ...], before: _Timing) -> StepDone:
        self._device.synchronize()
        after = self._mark()
        seconds = after.start_seconds - before.start_seconds
        stall_seconds = after.stall_seconds - before.stall_seconds
        told, self._told = self._told, self._statistics()
        return StepDone(
            deployment_id=self._order.deployment_id,
            stage_index=self._order.stage.index,
            step=step.step,
            tokens=tokens,
            seconds=seconds,
            compute_seconds=max(0.0, seconds - stall_seconds),
            stall_seconds=stall_seconds,
            streamed_bytes=self._told.streamed_bytes - told.streamed_bytes,
            read_seconds=self._told.read_seconds - told.read_seconds,
        )


def _draw(sequence: SequenceStep, logits_V: torch.Tensor) -> int:
    position = sequence.start_position + len(sequence.token_ids)
    draw = uniform(seed=sequence.seed, choice=sequence.choice, position=position)
    return sample(logits_V, temperature=sequence.temperature, top_p=sequence.top_p, draw=draw)
