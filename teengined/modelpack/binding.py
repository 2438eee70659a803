"""Fits a checkpoint to its model class: every parameter has a derivation, ties are what the weights say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from transformers.core_model_loading import WeightRenaming

from teengined.core.errors import SourceError
from teengined.interfaces.source import Checkpoint
from teengined.modelpack.derivation import Derivation, derive
from teengined.modelpack.outline import ModelOutline, build_config, build_outline
from teengined.modelpack.support import layer_list

__all__ = ["Binding", "bind"]

# Buffers that old checkpoints carry and every implementation computes by itself.
_RECOMPUTED_SUFFIXES = (
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
)
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A checkpoint and its model, fitted together."""

    outline: ModelOutline
    derivations: Mapping[str, Derivation]
    config: Mapping[str, Any]
    """What config.json of the package says: the checkpoint's, corrected where its weights disagree."""
    tied: Mapping[str, str]
    notes: tuple[str, ...]


def bind(checkpoint: Checkpoint, compute_dtype: str) -> Binding:
    """Return the binding; reads tied weights where the checkpoint holds both, and nothing else.

    Raises:
        SourceError: a parameter of the model has no tensor.
        UnsupportedArchitecture: see `support`.
    """
    names = tuple(tensor.name for tensor in checkpoint.tensors())
    config = dict(checkpoint.config)
    notes: list[str] = []
    outline = build_outline(build_config(config), compute_dtype)
    derivations, unused = derive(outline.model, names)
    if any(_differ(tie, outline, derivations, checkpoint) for tie in outline.tied.items()):
        notes.append("config.json ties weights that differ in the checkpoint; they were kept apart")
        config["tie_word_embeddings"] = False
        outline = build_outline(build_config(config), compute_dtype)
        derivations, unused = derive(outline.model, names)
    for target, owner in outline.tied.items():
        if owner not in derivations and target in derivations:
            derivations[owner] = _renamed(derivations[target], owner)
    _refuse_missing(outline, derivations)
    _refuse_sizes(outline, derivations, {tensor.name: tensor.shape for tensor in checkpoint.tensors()})
    left = _left_out(outline, unused)
    if left:
        shown = ", ".join(left[:_NAMES_SHOWN])
        notes.append(f"{len(left)} tensors that the model class does not use were left out: {shown}")
    return Binding(outline=outline, derivations=derivations, config=config, tied=dict(outline.tied), notes=tuple(notes))


def _differ(
    tie: tuple[str, str], outline: ModelOutline, derivations: Mapping[str, Derivation], checkpoint: Checkpoint
) -> bool:
    target, owner = tie
    if target not in derivations or owner not in derivations:
        return False
    one = derivations[target].run(outline.model, checkpoint.read)[target]
    other = derivations[owner].run(outline.model, checkpoint.read)[owner]
    return not torch.equal(one, other)


def _renamed(derivation: Derivation, owner: str) -> Derivation:
    names = [name for group in derivation.sources.values() for name in group]
    if len(names) != 1 or len(derivation.targets) != 1:
        raise SourceError(f"tensor {owner}: missing, and {derivation.first_target}, tied to it, is made of several")
    rename = WeightRenaming(names[0], owner)
    return Derivation(
        first_target=owner, targets=(owner,), transform=rename, sources={rename.source_patterns[0]: names}
    )


def _refuse_missing(outline: ModelOutline, derivations: Mapping[str, Derivation]) -> None:
    missing = [parameter.name for parameter in outline.parameters() if parameter.name not in derivations]
    if missing:
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        raise SourceError(
            f"the checkpoint lacks {', '.join(missing[:_NAMES_SHOWN])}{more}, which the model of its config.json needs",
            hint="check that every shard is there and that config.json belongs to these weights",
        )


def _refuse_sizes(
    outline: ModelOutline, derivations: Mapping[str, Derivation], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the sizes that headers tell, before anything is read or written. Shapes are compared once it is read."""
    for parameter in outline.parameters():
        names = [name for group in derivations[parameter.name].sources.values() for name in group]
        needed = (parameter.num_experts, *parameter.shape) if parameter.num_experts else parameter.shape
        if derivations[parameter.name].keeps_size and sum(prod(shapes[name]) for name in names) != prod(needed):
            has = f"shape {shapes[names[0]]}" if len(names) == 1 else f"{len(names)} tensors like {names[0]}"
            raise SourceError(
                f"tensor {parameter.name}: the checkpoint has {has}, the model of its config.json needs {needed}"
            )


def _left_out(outline: ModelOutline, unused: tuple[str, ...]) -> list[str]:
    """Return the tensors that are left out and worth a note.

    Raises:
        SourceError: whole layers would be left out, and not those that predict further tokens ahead.
    """
    left = [name for name in unused if not name.endswith(_RECOMPUTED_SUFFIXES)]
    prefix, num_layers = layer_list(outline.model)
    surplus = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    layers = {int(match[1]) for name in left if (match := surplus.match(name))}
    ahead = getattr(outline.model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    beyond = [layer for layer in layers if layer >= num_layers + ahead]
    if beyond:
        raise SourceError(
            f"config.json says {num_layers} layers, the checkpoint has tensors of layer {max(beyond)} too",
            hint="check that config.json belongs to these weights",
        )
    return left
