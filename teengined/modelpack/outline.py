"""The shape of a model before any weight is read: its transformers class on the meta device, sorted into units.

For every entry of the class's state dict it says which unit holds it, in which role, and in which dtype. The rules are
those of the package format: matrices of `nn.Linear`, `Conv1D` and `nn.Embedding` and the slices of fused experts go
through the precision strategy, everything else is kept as it is in the compute dtype, or in fp32 where the class asks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from teengined.core.errors import SourceError, UnsupportedArchitecture
from teengined.modelpack.kv_elements import kv_elements
from teengined.modelpack.support import check_config, check_model, experts_modules, layer_list

__all__ = ["COMPUTE_DTYPES", "ModelOutline", "ParameterOutline", "Role", "build_config", "build_outline"]

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Role(StrEnum):
    """How a parameter is stored."""

    MATRIX = "matrix"
    """Through the strategy, as it is: (O, I) of a linear layer or (V, D) of an embedding."""
    TRANSPOSED = "transposed"
    """Through the strategy after a transposition: (I, O) of a Conv1D."""
    PLAIN = "plain"
    """As part `data` in `dtype`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterOutline:
    """One entry of the state dict. For experts, `shape` is one expert's slice, without the leading axis."""

    name: str
    role: Role
    dtype: torch.dtype
    shape: tuple[int, ...]
    num_experts: int = 0
    """Length of the leading expert axis; 0 for a parameter that is no expert's."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape that the strategy gets."""
        return self.shape[::-1] if self.role is Role.TRANSPOSED else self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutline:
    """A model's parameters in the order in which they are stored."""

    model: PreTrainedModel
    """On the meta device: names and shapes, no memory."""
    embedding: tuple[ParameterOutline, ...]
    layers: tuple[tuple[ParameterOutline, ...], ...]
    head: tuple[ParameterOutline, ...]
    tied: Mapping[str, str]
    """As the class and its configuration tie them: target -> owner. Targets are not among the parameters."""
    kv_elements_per_token: tuple[int, ...]

    def parameters(self) -> Iterator[ParameterOutline]:
        """Yield all of them in order of storage."""
        yield from self.embedding
        for layer in self.layers:
            yield from layer
        yield from self.head

    @property
    def num_experts(self) -> int:
        """The largest number of routed experts that a layer has."""
        return max((parameter.num_experts for parameter in self.parameters()), default=0)


def build_config(mapping: Mapping[str, Any]) -> PreTrainedConfig:
    """Return transformers' configuration object for a `config.json`.

    Raises:
        UnsupportedArchitecture: unknown `model_type`, or one that the generic path cannot run.
        SourceError: a value that the configuration class refuses.
    """
    check_config(mapping)
    model_type = mapping["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedArchitecture(f"architecture {model_type!r:.60} is not known to this version of transformers")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(mapping))
    except Exception as error:  # transformers' validators raise classes of their own
        problem = " ".join(str(error).split())
        raise SourceError(f"config.json: not a valid {model_type} configuration: {problem:.300}") from error
    check_config(config.to_dict())  # what the file leaves to the class's defaults counts too
    return config


def build_outline(config: PreTrainedConfig, compute_dtype: str) -> ModelOutline:
    """Return the outline of the model that `config` describes.

    Args:
        config: from `build_config`.
        compute_dtype: `fp32`, `bf16` or `fp16`.

    Raises:
        UnsupportedArchitecture: it cannot run on the generic path; the message says why.
    """
    dtype = COMPUTE_DTYPES[compute_dtype]
    model = _meta_model(config, dtype)
    check_model(model)
    prefix, num_layers = layer_list(model)
    layers: list[list[ParameterOutline]] = [[] for _ in range(num_layers)]
    before: list[ParameterOutline] = []
    after: list[ParameterOutline] = []
    tied = dict(model.all_tied_weights_keys)
    layer_of = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    base = f"{model.base_model_prefix}."
    seen_layer = False
    for parameter in _parameters(model, dtype):
        match = layer_of.match(parameter.name)
        seen_layer = seen_layer or match is not None
        if parameter.name in tied:
            continue
        if match is not None:
            layers[int(match[1])].append(parameter)
        else:
            (after if seen_layer or not parameter.name.startswith(base) else before).append(parameter)
    return ModelOutline(
        model=model,
        embedding=tuple(before),
        layers=tuple(tuple(layer) for layer in layers),
        head=tuple(after),
        tied=tied,
        kv_elements_per_token=tuple(kv_elements(model, layer) for layer in range(num_layers)),
    )


def _meta_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    except Exception as error:  # a constructor may fail in any way on a configuration nobody tried
        problem = " ".join(str(error).split())
        raise UnsupportedArchitecture(
            f"architecture {config.model_type!r}: transformers cannot build a causal language model from this "
            f"config.json: {problem:.300}"
        ) from error


def _parameters(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[ParameterOutline]:
    """Yield every entry of the state dict in order of registration, which is the order of execution."""
    # The loader's own table of what stays in fp32 has no public door.
    keep_fp32 = model._get_dtype_plan(dtype)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    in_fp32 = re.compile("|".join(name.replace("*", ".*") for name in keep_fp32)) if keep_fp32 else None
    experts = experts_modules(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        kept = torch.float32 if in_fp32 is not None and in_fp32.search(name) else tensor.dtype
        if owner in experts and isinstance(tensor, nn.Parameter):
            yield _expert_parameter(name, tensor, kept, transposed=experts[owner])
        else:
            role = _role(modules[owner], leaf)
            yield ParameterOutline(name=name, role=role, dtype=kept, shape=tuple(tensor.shape))


def _expert_parameter(name: str, tensor: torch.Tensor, dtype: torch.dtype, *, transposed: bool) -> ParameterOutline:
    matrix = Role.TRANSPOSED if transposed else Role.MATRIX
    role = matrix if tensor.ndim == 3 else Role.PLAIN
    return ParameterOutline(
        name=name, role=role, dtype=dtype, shape=tuple(tensor.shape[1:]), num_experts=tensor.shape[0]
    )


def _role(module: nn.Module, leaf: str) -> Role:
    if leaf == "weight" and isinstance(module, (nn.Linear, nn.Embedding)):
        return Role.MATRIX
    if leaf == "weight" and isinstance(module, Conv1D):
        return Role.TRANSPOSED
    return Role.PLAIN
