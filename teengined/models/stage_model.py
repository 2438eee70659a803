"""One stage of a model: the model's own forward pass with every layer outside the stage made a pass-through.

The whole class runs, so that whatever an architecture does around its layers (masks, rotary tables, per-layer types)
keeps its indices; what lies outside the stage costs a function call and no bytes.

    stage 0          ids -> [embedding] -> layers -> hidden
    between       hidden -> layers -> hidden
    last          hidden -> layers -> [norm] -> hidden -> [head] -> logits of the wanted rows

Shape suffixes: T tokens of the batch, D model width, W wanted rows, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from teengined.core.errors import UnsupportedArchitecture
from teengined.core.model import ModelManifest, UnitKind, UnitSpec
from teengined.core.plan import Stage
from teengined.interfaces.precision import PrecisionStrategy
from teengined.models.batch import StepBatch
from teengined.models.binding import Binder, UnitTensors
from teengined.models.cache import StepCache, current_cache
from teengined.models.fixed_numerics import FixedNumerics
from teengined.models.fused_layer import fused_layer
from teengined.models.linear import StrategyLinear, serve_embedding
from teengined.models.router_guess import RouterGuess
from teengined.models.skeleton import Skeleton

__all__ = ["GroupedWeights", "Head", "StageModel"]


class GroupedWeights(Protocol):
    """What a stage needs of its weights; `teengined.weights.StageWeights` is the real one."""

    def acquire(self, group_index: int) -> Mapping[str, UnitTensors]:
        """Wait until a group's units are on the device and return their tensors."""
        ...

    def release(self, group_index: int) -> None:
        """Let a group's buffer be reused."""
        ...

    def rewind(self) -> None:
        """Make the first group the next one, after a step that ended early."""
        ...

    def fetch_experts(
        self, layer: int, experts: Sequence[int], *, in_order: bool
    ) -> Generator[tuple[int, UnitTensors]]:
        """Yield routed experts that are in no group, each valid until the next is asked for."""
        ...

    def is_guessing_experts(self, num_rows: int) -> bool:
        """Say whether it is wanted to know early what a step of so many rows may ask for."""
        ...

    def guess_experts(self, layer: int, experts: Sequence[int]) -> None:
        """Take a guess of what a layer will ask for, the most probable first."""
        ...

    def embedding_rows(self, parameter: str, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the stored parts of just these rows of an embedding."""
        ...


class Head:
    """What the last stage's layers gave, and the way from there to logits. Lives for one forward pass."""

    def __init__(self, skeleton: Skeleton, outputs: Any, options: Mapping[str, Any]) -> None:
        """Take what the model's base returned, and what it was called with."""
        self._skeleton = skeleton
        self._outputs = outputs
        self._options = options
        self.hidden_TD: torch.Tensor = outputs.last_hidden_state[0]
        """The last hidden states, after the final norm, of every row."""

    def logits(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the logits (W, V) of these rows in fp32.

        The whole class runs, so that whatever it does to logits (scales, caps) is done; only its base answers at once.
        """
        wanted = torch.tensor(list(rows), device=self.hidden_TD.device)
        base, original = self._skeleton.base, self._skeleton.base.forward
        base.forward = self._same_outputs  # type: ignore[method-assign]
        try:
            with _numerics(self._skeleton):
                logits_1WV = self._skeleton.model(**self._options, logits_to_keep=wanted).logits
        finally:
            base.forward = original  # type: ignore[method-assign]
        return logits_1WV[0].float()

    def _same_outputs(self, *args: object, **kwargs: object) -> Any:
        return self._outputs


class StageModel:
    """Runs a stage's part of a forward pass, acquiring and releasing groups of weights in order of execution."""

    def __init__(
        self,
        *,
        skeleton: Skeleton,
        manifest: ModelManifest,
        stage: Stage,
        weights: GroupedWeights,
        precisions: Mapping[str, PrecisionStrategy],
    ) -> None:
        """Cut the skeleton, which from now on belongs to this stage."""
        self._skeleton = skeleton
        self._stage = stage
        self._weights = weights
        self._manifest = manifest
        self._precisions = precisions
        self.compute_dtype = skeleton.options.compute_dtype
        self.num_groups = stage.layer_end - stage.layer_start + stage.has_head
        self._binder = Binder(skeleton.model, manifest, precisions, self.compute_dtype)
        self._incoming_1TD: torch.Tensor | None = None
        self._outgoing_1TD: torch.Tensor | None = None
        self._bound: dict[int, Mapping[str, UnitTensors]] = {}
        self._guesses: dict[int, RouterGuess] = {}
        self._cut_layers()
        self._cut_experts()
        self._cut_embedding()
        self._cut_head()

    def forward(
        self, batch: StepBatch, incoming: torch.Tensor, read_head: Callable[[Head], None] | None = None
    ) -> torch.Tensor | None:
        """Run the stage on a batch.

        Args:
            batch: The sequences; their new tokens are the rows of `incoming`.
            incoming: Token ids (T,) on the stage that embeds, activations (T, D) on the others.
            read_head: On the last stage, takes what is wanted of the rows, before the head's weights are released.

        Returns:
            Activations (T, D) in the compute dtype; on the last stage nothing.
        """
        cache = StepCache(batch, is_strict=self._skeleton.options.is_strict)
        token = current_cache.set(cache)
        try:
            with torch.inference_mode():
                return self._run(cache, incoming, read_head)
        except BaseException:
            self._weights.rewind()
            raise
        finally:
            current_cache.reset(token)
            self._incoming_1TD = self._outgoing_1TD = None

    def rows_asking(self, layer: int, expert: int) -> Sequence[int]:
        """Return the rows of the latest batch that ask for an expert; empty where it is not known."""
        guess = self._guesses.get(layer)
        return () if guess is None else guess.rows_asking(expert)

    def _run(
        self, cache: StepCache, incoming: torch.Tensor, read_head: Callable[[Head], None] | None
    ) -> torch.Tensor | None:
        options: dict[str, Any] = {
            "position_ids": cache.batch.positions_T[None],
            "past_key_values": cache,
            "use_cache": True,
        }
        if self._stage.has_embedding:
            options["input_ids"] = incoming[None]
        else:
            self._incoming_1TD = incoming[None].to(self.compute_dtype)
            options["inputs_embeds"] = self._incoming_1TD
        with _numerics(self._skeleton):
            outputs = self._skeleton.base(**options)
        if self._stage.has_head:
            if read_head is not None:
                read_head(Head(self._skeleton, outputs, options))
            self._weights.release(self.num_groups - 1)
            return None
        assert self._outgoing_1TD is not None, "the stage's last layer did not run"
        return self._outgoing_1TD[0]

    def _cut_layers(self) -> None:
        start, end = self._stage.layer_start, self._stage.layer_end
        for index, layer in enumerate(self._skeleton.layers):
            if start <= index < end:
                layer.forward = self._layer_forward(index - start, self._fused(layer))
            else:
                layer.forward = _pass_through

    def _fused(self, layer: nn.Module) -> Callable[..., Any]:
        """Return the layer's forward function; strict numerics keep to operations whose every bit is accounted for."""
        options = self._skeleton.options
        is_plain = options.device.type == "cpu" and not options.is_strict
        return fused_layer(layer, layer.forward, options.compute_dtype) if is_plain else layer.forward

    def _layer_forward(self, group_index: int, original: Callable[..., Any]) -> Callable[..., Any]:
        is_first = group_index == 0
        is_last = group_index == self._stage.layer_end - self._stage.layer_start - 1

        def forward(hidden_1TD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if is_first and self._incoming_1TD is not None:
                hidden_1TD = self._incoming_1TD
            self._acquire(group_index)
            self._guess_experts(self._stage.layer_start + group_index, hidden_1TD)
            output = original(hidden_1TD, *args, **kwargs)
            self._weights.release(group_index)
            if is_last:
                self._outgoing_1TD = output[0] if isinstance(output, tuple) else output
                if self._stage.has_head:
                    self._acquire(group_index + 1)
            return output

        return forward

    def _acquire(self, group_index: int) -> None:
        acquired = self._weights.acquire(group_index)
        if self._bound.get(group_index) is acquired:
            return  # Resident: a layer may have hundreds of experts, and none of them moved.
        for unit_id, tensors in acquired.items():
            self._binder.bind(unit_id, tensors)
        self._bound[group_index] = acquired

    def _cut_experts(self) -> None:
        """Have routed experts fetched where the plan keeps a cache of them."""
        if self._stage.experts is None:
            return
        layers: dict[int, dict[int, UnitSpec]] = {}
        for unit in self._manifest.units:
            if unit.layer is not None and unit.expert is not None:
                layers.setdefault(unit.layer, {})[unit.expert] = unit
        for layer in range(self._stage.layer_start, self._stage.layer_end):
            if layer in layers:
                self._binder.fetch_experts(layers[layer], partial(self._fetch_experts, layer))
                self._guesses[layer] = RouterGuess(self._skeleton.layers[layer])

    def _guess_experts(self, layer: int, hidden_1TD: torch.Tensor) -> None:
        """Have experts read while the layer's dense part computes, where that pays."""
        guess = self._guesses.get(layer)
        if guess is not None and self._weights.is_guessing_experts(hidden_1TD.shape[1]):
            self._weights.guess_experts(layer, guess.experts(hidden_1TD))

    def _fetch_experts(self, layer: int, experts: Sequence[int], in_order: bool) -> Generator[tuple[int, UnitTensors]]:
        return self._weights.fetch_experts(layer, experts, in_order=in_order)

    def _cut_embedding(self) -> None:
        embedding = next(unit for unit in self._manifest.units if unit.kind is UnitKind.EMBEDDING)
        precisions = {tensor.parameter: tensor.precision or embedding.precision for tensor in embedding.tensors}
        for parameter, precision in precisions.items():
            module = self._skeleton.model.get_submodule(parameter.rpartition(".")[0])
            if not isinstance(module, nn.Embedding):
                raise UnsupportedArchitecture(
                    f"{self._manifest.architecture}: {parameter} belongs to the embedding but is not looked up by rows"
                )
            if self._stage.has_embedding:
                serve_embedding(module, self._row_reader(parameter, self._precisions[precision]))
            else:
                module.forward = self._no_rows

    def _row_reader(self, parameter: str, strategy: PrecisionStrategy) -> Callable[[torch.Tensor], torch.Tensor]:
        def rows(ids: torch.Tensor) -> torch.Tensor:
            return strategy.decode(self._weights.embedding_rows(parameter, ids), self.compute_dtype)

        return rows

    def _no_rows(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name that nn.Embedding uses
        """Stand for an embedding that another stage holds; what is computed from it is replaced at the first layer."""
        width = self._skeleton.model.config.hidden_size
        return torch.zeros(*input.shape, width, dtype=self.compute_dtype, device=input.device)

    def _cut_head(self) -> None:
        if self._stage.has_head:
            return
        head = next(unit for unit in self._manifest.units if unit.kind is UnitKind.HEAD)
        for parameter in dict.fromkeys(tensor.parameter for tensor in head.tensors):
            module = self._skeleton.model.get_submodule(parameter.rpartition(".")[0])
            if not isinstance(module, StrategyLinear):
                module.forward = _pass_through


def _numerics(skeleton: Skeleton) -> contextlib.AbstractContextManager[object]:
    return FixedNumerics() if skeleton.options.is_strict else contextlib.nullcontext()


def _pass_through(hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
    return hidden_states
