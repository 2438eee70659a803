"""A transformers model without weights: its own class on the meta device, with our seams in the place of products.

What it must never know: files, tiers, devices other than where its small tables (rotary frequencies) live.
"""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from teengined.core.errors import PackageError, UnsupportedArchitecture
from teengined.models.attention import ATTENTION_NAME, register_attention
from teengined.models.experts import EXPERTS_NAME, ExpertTable, register_experts
from teengined.models.latent_attention import defer_expansion
from teengined.models.linear import StrategyLinear
from teengined.models.rotary import freeze_rotary

__all__ = ["TORCH_DTYPES", "Skeleton", "SkeletonOptions", "build_skeleton", "num_kv_heads", "read_config"]

# While it builds a model, transformers changes torch's default dtype, which all threads of a process share, and then
# sets it back to what it found: two stages at once could leave the other's dtype behind.
_BUILDING = threading.Lock()

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class SkeletonOptions:
    """What a skeleton is built for."""

    compute_dtype: torch.dtype
    device: torch.device
    context_tokens: int
    """The longest context that it will see."""
    is_strict: bool = False
    """A row depends on its own context only, not on what is computed beside it."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model on the meta device and the places in it that a stage cares for."""

    model: PreTrainedModel
    base: nn.Module
    """The part that holds embeddings, layers and the final norm."""
    layers: nn.ModuleList
    layers_name: str
    """Prefix of layer parameters in the state dict, such as `model.layers`."""
    options: SkeletonOptions


def read_config(package_dir: Path) -> PretrainedConfig:
    """Return the configuration of a package.

    Raises:
        PackageError: config.json is missing, broken, or names a model type that transformers does not have.
    """
    path = package_dir / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"{path.name} of {package_dir.name} cannot be used: {error}") from error


def num_kv_heads(config: PretrainedConfig, elements_per_token: int) -> int:
    """Return how many heads' keys a layer keeps for a token, at most; latent attention keeps one for all.

    Some classes ignore a number of key-value heads in their configuration, so `elements_per_token`, the numbers that a
    layer keeps, have their say.
    """
    text = config.get_text_config()
    if getattr(text, "kv_lora_rank", None) and getattr(text, "qk_rope_head_dim", None):
        return 1
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    stated = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return max(stated, elements_per_token // (2 * head_dim))


def build_skeleton(config: PretrainedConfig, options: SkeletonOptions) -> Skeleton:
    """Return the model's own class on the meta device with our linear layers, attention and experts in it.

    Raises:
        UnsupportedArchitecture: the class has no single list of layers to cut.
    """
    register_attention()
    register_experts()
    with _BUILDING, torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            config, dtype=options.compute_dtype, attn_implementation=ATTENTION_NAME
        )
    model = cast("PreTrainedModel", built.eval())
    model.config.use_cache = True
    _use_our_experts(model, is_fixed=options.is_strict)
    _replace_linears(model, is_fixed=options.is_strict)
    _make_tables(model, options.device)
    freeze_rotary(model, options.context_tokens)
    defer_expansion(model)
    base, name, layers = _find_layers(model, config)
    return Skeleton(model, base, layers, name, options)


def _use_our_experts(model: PreTrainedModel, *, is_fixed: bool) -> None:
    for module in model.modules():
        if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed"):
            module.config._experts_implementation = EXPERTS_NAME  # type: ignore[union-attr]  # noqa: SLF001
            module.expert_table = ExpertTable(is_fixed=is_fixed)  # type: ignore[assignment]


def _replace_linears(model: nn.Module, *, is_fixed: bool) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, StrategyLinear(child.in_features, child.out_features, is_fixed=is_fixed))
            elif isinstance(child, Conv1D):
                setattr(parent, name, StrategyLinear(child.weight.shape[0], child.nf, is_fixed=is_fixed))


def _make_tables(model: PreTrainedModel, device: torch.device) -> None:
    """Compute buffers that no checkpoint holds (rotary frequencies …), the way `from_pretrained` itself does."""
    for module in model.modules():
        names = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]  # noqa: SLF001
        for name in names:
            module._buffers[name] = torch.empty_like(cast("Any", module._buffers[name]), device=device)  # noqa: SLF001
        if names:
            model._init_weights(module)  # noqa: SLF001


def _find_layers(model: PreTrainedModel, config: PretrainedConfig) -> tuple[nn.Module, str, nn.ModuleList]:
    base = model.base_model
    found = [
        (name, child)
        for name, child in base.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if base is model or len(found) != 1:
        raise UnsupportedArchitecture(
            f"{config.model_type}: {type(model).__name__} has {len(found)} lists of {config.num_hidden_layers} layers"
        )
    name, layers = found[0]
    return base, f"{model.base_model_prefix}.{name}", layers
