"""One opened stage in a worker: its weights, its model, its KV pool, and its ends of the transports."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from teengined.core.errors import TeengineError, TransportError
from teengined.core.model import ModelManifest
from teengined.engine.answers import Answerer, Answers
from teengined.engine.sampler import Sampler
from teengined.engine.sequences import Sequences
from teengined.engine.spool import StageSpool
from teengined.interfaces.driver import Device
from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.transport import Receiver, Sender, TransportOptions
from teengined.modelpack.manifest import read_manifest
from teengined.models.batch import StepBatch
from teengined.models.kv import KVPool, PoolShape
from teengined.models.skeleton import TORCH_DTYPES, Skeleton, SkeletonOptions, build_skeleton, num_kv_heads, read_config
from teengined.models.stage_model import Head, StageModel
from teengined.native.library import kernel_library, kernels_name
from teengined.protocol.worker_messages import ExpertCounts, OpenStage, RunStep, SpoolReport, StepDone
from teengined.weights.options import HostPoolAccess, StreamOptions
from teengined.weights.stage_weights import StageWeights
from teengined.weights.statistics import StreamStatistics

__all__ = ["OpenedStage"]

# An activation without rows tells the next stage that the step failed here, so that it need not wait out its deadline.
_FAILED_STEP = torch.empty(0)
# The ring of a healthy transport has a free slot at once; a dead one is not worth the deadline of a step.
_TELL_SECONDS = 1.0
# Activations between two stages: with one more than there are stages, every stage has one to work on while each hop
# holds the next, and a stage that is done early need not wait for its neighbour to fetch.
_MIN_TRANSPORT_SLOTS = 2
_LARGEST_ELEMENT_BYTES = 4
_STRICT, _QUANTISED = "strict", "int8"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Timing:
    """The clock and the time lost waiting, at the start of a step's own work."""

    start_seconds: float
    stall_seconds: float


class OpenedStage:
    """Runs the steps of one stage, in order, on one thread. `open` before, `close` after."""

    def __init__(
        self,
        order: OpenStage,
        device: Device,
        registry: PluginRegistry,
        report: Callable[[SpoolReport], None] = lambda report: None,
    ) -> None:
        """Remember the order; nothing is read or allocated before `open`. `report` may be called in any thread."""
        self._order = order
        self._report = report
        self._spool: StageSpool | None = None
        self._device = device
        self._registry = registry
        self._receiver: Receiver | None = None
        self._sender: Sender | None = None
        self._weights: StageWeights | None = None
        self._pool: KVPool | None = None
        self._sequences: Sequences | None = None
        self._answerer: Answerer | None = None
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

    @property
    def kernels(self) -> str:
        """Which kernels it computes with; empty: the device's own."""
        return kernels_name() if self._device.torch_device.type == "cpu" else ""

    def _open(self, on_progress: Callable[[int, int], None]) -> None:
        order, package_dir = self._order, Path(self._order.package_dir)
        if self._device.torch_device.type == "cpu":
            kernel_library()  # Compiled once on a host: now, when nobody's request waits for it.
        manifest = read_manifest(package_dir)
        transport_options = self._transport_options(manifest)
        if order.listen_address:
            transport = self._registry.transport(order.listen_transport)
            self._receiver = transport.listen(order.listen_address, transport_options)
        config = read_config(package_dir)
        self._pool = KVPool(self._device, self._pool_shape(manifest, config))
        self._sequences = Sequences(self._pool)
        if order.num_host_slots:
            self._spool = StageSpool(order, self._pool, self._report)
        if order.stage.has_head:
            sampler = Sampler(vocab_size=manifest.vocab_size, package_dir=package_dir)
            sampler.prepare_grammars(manifest.eos_token_ids)
            self._answerer = Answerer(sampler)
        skeleton = build_skeleton(
            config,
            SkeletonOptions(
                compute_dtype=TORCH_DTYPES[order.stage.compute_dtype],
                device=self._device.torch_device,
                context_tokens=order.context_tokens,
                is_strict=order.numerics == _STRICT,
            ),
        )
        self._model = self._open_model(manifest, skeleton, on_progress)
        if order.connect_address:
            transport = self._registry.transport(order.connect_transport)
            self._sender = transport.connect(
                order.connect_address, transport_options, timeout_seconds=order.timeout_seconds
            )

    def _open_model(
        self, manifest: ModelManifest, skeleton: Skeleton, on_progress: Callable[[int, int], None]
    ) -> StageModel:
        """Read the resident units and put them into the model."""
        order = self._order
        self._weights = StageWeights(
            package_dir=Path(order.package_dir),
            manifest=manifest,
            stage=order.stage,
            device=self._device,
            options=StreamOptions(
                read_threads=order.read_threads,
                read_chunk_bytes=order.read_chunk_bytes,
                ring_slots=order.ring_slots,
                direct_io=order.direct_io,
                verify=order.verify,
                expert_policy=order.expert_policy,
                expert_guesses=order.expert_guesses,
                timeout_seconds=order.timeout_seconds,
                host_pool=_host_pool(order),
            ),
        )
        self._weights.open(on_progress)
        if order.verify:
            self._read_every_group(self._weights)
        self._told = self._weights.statistics
        return StageModel(
            skeleton=skeleton,
            manifest=manifest,
            stage=order.stage,
            weights=self._weights,
            precisions=self._registry.precisions(),
        )

    def _transport_options(self, manifest: ModelManifest) -> TransportOptions:
        return TransportOptions(
            max_message_bytes=self._order.max_step_tokens * manifest.hidden_size * _LARGEST_ELEMENT_BYTES,
            num_slots=max(_MIN_TRANSPORT_SLOTS, self._order.num_stages + 1),
        )

    def _pool_shape(self, manifest: ModelManifest, config: PretrainedConfig) -> PoolShape:
        order = self._order
        elements = manifest.kv_elements_per_token
        layers = range(order.stage.layer_start, order.stage.layer_end)
        return PoolShape(
            num_blocks=order.num_blocks,
            block_tokens=order.block_tokens,
            elements_per_token={layer: elements[layer] for layer in layers},
            num_kv_heads=num_kv_heads(config, max(elements)),
            dtype=TORCH_DTYPES[order.stage.compute_dtype],
            quantised=order.kv_dtype == _QUANTISED,
        )

    def _read_every_group(self, weights: StageWeights) -> None:
        """Go round the ring once: a unit is checked when it is first read, and a damaged one must refuse the load.

        Routed experts are left to the first step that asks for them: there may be more than a load has time to read.
        """
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
        assert self._sequences is not None
        assert self._pool is not None
        copy_seconds = 0.0 if self._spool is None else self._spool.obey(step)
        try:  # before anything else that may fail: later steps build on what this one changes
            self._sequences.apply(step)
        finally:
            if self._answerer is not None:
                self._answerer.apply(step)
        if not step.parts:
            return replace(self._done(step, Answers(), self._mark()), copy_seconds=copy_seconds)
        entries = self._sequences.entries(step)
        incoming = self._incoming(step)
        timing = self._mark()
        answers = Answers()

        def read_head(head: Head) -> None:
            nonlocal answers
            assert self._answerer is not None
            answers = self._answerer.answer(step, head)

        output = self._model.forward(StepBatch(entries, self._pool), incoming, read_head)
        done = replace(self._done(step, answers, timing), copy_seconds=copy_seconds)
        if self._weights is not None:
            self._weights.learn_step(sum(len(part.token_ids) for part in step.parts), done.seconds)
        if self._sender is not None and output is not None:
            self._sender.send(step.step, output.cpu().contiguous(), timeout_seconds=self._order.timeout_seconds)
        return done

    def sequences_to_blame(self, step: RunStep, error: TeengineError) -> tuple[int, ...]:
        """Return whose tokens asked for an expert that could not be had, if that is why the step failed.

        The stage can go on then, and so can the other sequences. Empty where it cannot.
        """
        lost = None if self._weights is None else self._weights.lost_expert(error)
        if lost is None or self._model is None:
            return ()
        owners = [part.sequence_id for part in step.parts for _ in part.token_ids]
        return tuple(sorted({owners[row] for row in self._model.rows_asking(*lost)}))

    def close(self) -> None:
        """Give back memory, files and connections. Safe to call twice."""
        self._model = self._sequences = None
        for part in (self._sender, self._receiver, self._weights, self._spool, self._pool):
            if part is not None:
                part.close()
        if self._answerer is not None:
            self._answerer.shutdown()
        self._weights = self._spool = self._pool = self._answerer = self._sender = self._receiver = None

    def _incoming(self, step: RunStep) -> torch.Tensor:
        device = self._device.torch_device
        if self._receiver is None:
            ids = [token_id for part in step.parts for token_id in part.token_ids]
            return torch.tensor(ids, dtype=torch.long, device=device)
        activation = self._receiver.recv(timeout_seconds=self._order.timeout_seconds)
        while activation.tag < step.step:  # left over from a step that timed out here
            activation = self._receiver.recv(timeout_seconds=self._order.timeout_seconds)
        if activation.tag != step.step:
            raise TransportError(f"step {step.step} got the activation of step {activation.tag}")
        if activation.tensor.numel() == 0:
            raise TransportError(f"an earlier stage failed in step {step.step}")
        return activation.tensor.to(device)

    def _statistics(self) -> StreamStatistics:
        assert self._weights is not None
        return self._weights.statistics

    def _mark(self) -> _Timing:
        statistics = self._statistics()
        return _Timing(time.perf_counter(), statistics.stall_seconds)

    def _done(self, step: RunStep, answers: Answers, before: _Timing) -> StepDone:
        self._device.synchronize()
        after = self._mark()
        seconds = after.start_seconds - before.start_seconds
        stall_seconds = after.stall_seconds - before.stall_seconds
        told, self._told = self._told, self._statistics()
        return StepDone(
            deployment_id=self._order.deployment_id,
            stage_index=self._order.stage.index,
            step=step.step,
            tokens=answers.tokens,
            seconds=seconds,
            compute_seconds=max(0.0, seconds - stall_seconds),
            stall_seconds=stall_seconds,
            streamed_bytes=self._told.streamed_bytes - told.streamed_bytes,
            read_seconds=self._told.read_seconds - told.read_seconds,
            prompt_logprobs=answers.prompt_logprobs,
            vectors=answers.vectors,
            experts=self._expert_counts(),
        )

    def _expert_counts(self) -> ExpertCounts | None:
        """Add up what the caches of all sizes did; the largest experts' has the say on the policy's name."""
        assert self._weights is not None
        reports, guesses = self._weights.expert_reports, self._weights.expert_guesses
        if not reports:
            return None
        return ExpertCounts(
            policy=reports[0].policy,
            num_asked=sum(report.num_accesses for report in reports),
            num_hits=sum(report.num_hits for report in reports),
            num_best_hits=sum(report.num_best_hits for report in reports),
            num_simulated_hits=sum(report.num_simulated_hits for report in reports),
            read_bytes=self._told.expert_bytes,
            num_guessed=guesses.num_guessed,
            num_guessed_right=guesses.num_right,
            wrong_guess_bytes=self._told.wrong_guess_bytes,
            is_guessing=guesses.is_on,
        )


def _host_pool(order: OpenStage) -> HostPoolAccess | None:
    if not order.host_pool_path:
        return None
    return HostPoolAccess(path=order.host_pool_path, ticket=order.host_pool_ticket, is_locked=order.lock_host_pool)
