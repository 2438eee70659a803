"""Decoder layers of the usual form as two compiled calls and the attention between them.

transformers runs such a layer as some thirty operations, each with its own walk through Python; where the products
are small, that is most of the time. The compiled calls round where those operations round. A layer is recognised by
its class and by what it is made of, and each is compared with its own module on the first batch that it sees; one that
differs stays what it was.

Shape suffixes: T rows, D model width, H query heads, K key-value heads, E width of a head.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from teengined.models.attention import attend_stored
from teengined.models.cache import StepCache
from teengined.models.kv import LayerBlocks
from teengined.models.linear import StrategyLinear
from teengined.models.paged_attention import Scoring
from teengined.native.decoder_layer import (
    HEAD_STEP,
    InputWeights,
    KeptStates,
    OutputWeights,
    has_decoder_layer,
    layer_inputs,
    layer_outputs,
)
from teengined.native.library import NativeMatrix

__all__ = ["FusedLayer", "fused_layer"]

logger = logging.getLogger(__name__)

# Layers that compute what the compiled calls do, whatever their configuration says.
_CLASSES = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_GATED = {"gate_proj", "up_proj", "down_proj"}
_SILU = frozenset({"SiLU", "SiLUActivation"})
# What two ways of rounding may differ by: shares of what the layer adds, and of what it returns.
_ADDED_TOLERANCE = 0.05
_TOTAL_TOLERANCE = 0.004

Layer = Callable[..., Any]


def fused_layer(layer: nn.Module, original: Layer, compute_dtype: torch.dtype) -> Layer:
    """Return a forward function for the layer: a `FusedLayer`, or `original` where the layer is of another form."""
    is_bf16 = compute_dtype == torch.bfloat16
    return FusedLayer(layer, original) if is_bf16 and _is_usual(layer) and has_decoder_layer() else original


@dataclass(frozen=True, slots=True)
class _Attended:
    """How the layer's own attention was seen to work."""

    blocks: LayerBlocks
    scoring: Scoring


@dataclass(frozen=True, slots=True)
class _Weights:
    """What the compiled calls read; addresses of what is bound."""

    inputs: InputWeights
    outputs: OutputWeights


class FusedLayer:
    """Stands for one layer's forward function. Its weights are bound from outside before each call."""

    def __init__(self, layer: nn.Module, original: Layer) -> None:
        """`original` is what the first batch is run through as well."""
        self._layer = cast("Any", layer)
        self._original = original
        self._attended: _Attended | None = None
        self._is_refused = False
        attention, mlp = self._layer.self_attn, self._layer.mlp
        self._linears: list[StrategyLinear] = [
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        ]  # fmt: skip
        head_norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self._norms: list[Any] = [self._layer.post_attention_layernorm, self._layer.input_layernorm, *head_norms]
        self._bound: tuple[list[object], _Weights | None] | None = None

    @property
    def is_used(self) -> bool:
        """Say whether the compiled calls agreed with the module, and stand for it now."""
        return self._attended is not None

    def __call__(self, hidden_1TD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's module returns."""
        cache, rotary = kwargs.get("past_key_values"), kwargs.get("position_embeddings")
        if self._is_refused or not isinstance(cache, StepCache) or rotary is None:
            return self._original(hidden_1TD, *args, **kwargs)
        if self._attended is not None:
            output_1TD = self._run(hidden_1TD, rotary, cache, self._attended)
            return self._original(hidden_1TD, *args, **kwargs) if output_1TD is None else output_1TD
        return self._compare(hidden_1TD, args, kwargs)

    def _compare(self, hidden_1TD: torch.Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        cache = cast("StepCache", kwargs["past_key_values"])
        cache.attended = None
        expected = self._original(hidden_1TD, *args, **kwargs)
        is_known = cast("object", cache.attended) is not None
        if not is_known or not isinstance(expected, torch.Tensor):
            self._refuse("its attention or its result is of another kind")
            return expected
        if not bool(expected.isfinite().all()):
            return expected  # says nothing about the layer
        blocks, scoring = cast("tuple[LayerBlocks, Scoring]", cache.attended)
        attended = _Attended(blocks, scoring)
        output_1TD = self._run(hidden_1TD, kwargs["position_embeddings"], cache, attended)
        if output_1TD is None:
            self._refuse("its weights are of a form that the compiled calls do not read")
        elif not _agrees(hidden_1TD, expected, output_1TD):
            self._refuse("the compiled calls give something else")
        else:
            self._attended = attended
        return expected

    def _refuse(self, reason: str) -> None:
        self._is_refused = True
        logger.info("a %s runs operation by operation: %s", type(self._layer).__name__, reason)

    def _run(
        self, hidden_1TD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], cache: StepCache, attended: _Attended
    ) -> torch.Tensor | None:
        """Return the layer's result; None: its weights or tables are not what the compiled calls read."""
        weights = self._bound_weights()
        hidden_TD = hidden_1TD[0].contiguous()
        cosines, sines = (table[0].contiguous() for table in rotary)
        is_plain = hidden_TD.dtype == cosines.dtype == sines.dtype == torch.bfloat16
        if weights is None or not is_plain or cosines.shape[-1] != weights.inputs.head_width:
            return None
        blocks = attended.blocks
        places_TK = cache.batch.write_rows(blocks.keys_NKTD.shape[1])
        kept = None
        if blocks.keys_NKTD.dtype == torch.bfloat16:
            kept = KeptStates(keys=blocks.keys_NKTD, values=blocks.values_NKTE, places_TK=places_TK)
        states = layer_inputs(hidden_TD, (cosines, sines), weights.inputs, kept)
        if kept is None:
            _, keys, values = states
            blocks.write(places_TK, keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
        attended_RHE = attend_stored(cache, blocks, states, attended.scoring)
        return layer_outputs(attended_RHE.reshape(hidden_TD.shape[0], -1), hidden_TD, weights.outputs)[None]

    def _bound_weights(self) -> _Weights | None:
        """Return the weights as the compiled calls read them; found anew only where others were bound since."""
        marks = self._marks()
        if self._bound is None or not _are_same(self._bound[0], marks):
            inputs, outputs = self._input_weights(), self._output_weights()
            weights = None if inputs is None or outputs is None else _Weights(inputs, outputs)
            self._bound = (marks, weights)
        return self._bound[1]

    def _marks(self) -> list[object]:
        """Return what is bound now. Whoever keeps it keeps the memory behind it from becoming something else."""
        marks: list[object] = [linear.parts for linear in self._linears]
        marks += [linear.bias_O for linear in self._linears]
        return marks + [norm.weight for norm in self._norms]

    def _input_weights(self) -> InputWeights | None:
        query, key, value = self._linears[:3]
        norm, *head_norms = self._norms[1:]
        matrices = _matrices(query, key, value)
        if matrices is None or not all(each.weight.dtype == torch.bfloat16 for each in self._norms[1:]):
            return None
        return InputWeights(
            norm=norm.weight,
            query=matrices[0],
            key=matrices[1],
            value=matrices[2],
            query_norm=head_norms[0].weight if head_norms else None,
            key_norm=head_norms[1].weight if head_norms else None,
            epsilon=norm.variance_epsilon,
            head_width=self._layer.self_attn.head_dim,
        )

    def _output_weights(self) -> OutputWeights | None:
        norm = self._norms[0]
        matrices = _matrices(*self._linears[3:])
        if matrices is None or norm.weight.dtype != torch.bfloat16:
            return None
        output, gate, up, down = matrices
        return OutputWeights(
            norm=norm.weight, output=output, gate=gate, up=up, down=down, epsilon=norm.variance_epsilon
        )


def _is_usual(layer: nn.Module) -> bool:
    if type(layer).__name__ not in _CLASSES or _children(layer) != _LAYER_PARTS:
        return False
    found = cast("Any", layer)
    attention = _children(found.self_attn)
    if attention not in (_PROJECTIONS, _PROJECTIONS | _HEAD_NORMS):
        return False
    is_gated = _GATED <= _children(found.mlp) <= _GATED | {"act_fn"} and type(found.mlp.act_fn).__name__ in _SILU
    return is_gated and found.self_attn.head_dim % HEAD_STEP == 0


def _are_same(first: list[object], second: list[object]) -> bool:
    return all(one is other for one, other in zip(first, second, strict=True))


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _matrices(*linears: StrategyLinear) -> list[NativeMatrix] | None:
    """Return how the compiled calls read these layers' weights; None where one of them cannot be read."""
    matrices: list[NativeMatrix] = []
    for linear in linears:
        assert linear.strategy is not None, "a layer ran before its weights were bound"
        matrix, bias_O = linear.strategy.native_matrix(linear.parts), linear.bias_O
        if matrix is None or (bias_O is not None and bias_O.dtype != torch.bfloat16):
            return None
        matrix.bias = None if bias_O is None else bias_O.data_ptr()
        matrices.append(matrix)
    return matrices


def _agrees(hidden: torch.Tensor, expected: torch.Tensor, output: torch.Tensor) -> bool:
    hidden, expected, output = hidden.float(), expected.float(), output.float()
    bound = _ADDED_TOLERANCE * (expected - hidden).norm() + _TOTAL_TOLERANCE * expected.norm()
    return bool((output - expected).norm() <= bound)
