"""How much each part of a model suffers from each precision: measured on a text, one part at a time.

The whole model is held in fp32 and answers the text. Then one part after the other is stored in a precision and read
back, and the model answers again: the error is the mean divergence of the next token's distribution from what it was,
in nats (Kullback-Leibler). It grows with the square of a small disturbance, so that errors of parts nearly add up.
"""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from teengined.core.errors import DoesNotFit
from teengined.core.quantities import format_bytes
from teengined.interfaces.precision import PrecisionStrategy
from teengined.modelpack.assembly import TensorProvider
from teengined.modelpack.outline import ModelOutline, ParameterOutline, Role
from teengined.modelpack.precision_parts import MatrixPart

__all__ = ["calibration_rows", "measured_errors"]

# Tokens of a calibration text that are used, in rows of so many: a few hundred tell parts apart.
_NUM_ROWS, _ROW_TOKENS = 4, 64
_FP32_BYTES = 4
# Beside the weights: the logits of the text twice, and activations.
_WORKING_BYTES = 1 << 30


def calibration_rows(token_ids: Sequence[int]) -> torch.Tensor:
    """Return the first tokens as rows (rows, tokens) of equal length; one shorter row where there are few."""
    num_rows = min(_NUM_ROWS, len(token_ids) // _ROW_TOKENS)
    if num_rows == 0:
        return torch.tensor([list(token_ids)])
    return torch.tensor(list(token_ids[: num_rows * _ROW_TOKENS])).view(num_rows, _ROW_TOKENS)


def measured_errors(
    provider: TensorProvider,
    parts: Sequence[MatrixPart],
    strategies: Sequence[PrecisionStrategy],
    rows_RT: torch.Tensor,
) -> Iterator[tuple[str, str, float]]:
    """Yield the error of every part in every precision: names of both, and nats for each token.

    Raises:
        DoesNotFit: the model in fp32 does not fit the memory of this machine.
    """
    with torch.inference_mode():
        model = _loaded(provider)
        outlines = {parameter.name: parameter for parameter in provider.outline.parameters()}
        reference = _logprobs(model, rows_RT)
        for part in parts:
            for strategy in strategies:
                with _stored(model, part, outlines, strategy) as has_changed:
                    error = _divergence(model, rows_RT, reference) if has_changed else 0.0
                yield part.name, strategy.name, error


def _loaded(provider: TensorProvider) -> PreTrainedModel:
    outline = provider.outline
    _refuse_large(outline)
    model = AutoModelForCausalLM.from_config(
        outline.model.config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    state = model.state_dict()
    for parameter in outline.parameters():
        target = state[parameter.name]
        if parameter.num_experts:
            for expert in range(parameter.num_experts):
                target[expert].copy_(provider.take_expert(parameter, expert))
        else:
            target.copy_(provider.take(parameter.name))
    provider.forget()
    return model


def _refuse_large(outline: ModelOutline) -> None:
    num_elements = sum(tensor.numel() for tensor in outline.model.state_dict().values())
    needed = num_elements * _FP32_BYTES + _WORKING_BYTES
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached_bytes()
    if needed > available:
        raise DoesNotFit(
            f"a choice by measured error holds the model in fp32: it needs {format_bytes(needed)}, "
            f"{format_bytes(available)} are free",
            hint="name precisions by rules instead, such as --precision int4,attention=int8",
        )


def _cached_bytes() -> int:
    """Return what the kernel holds of files and would give back."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    return int(lines["Cached"].split()[0]) * 1024


def _divergence(model: PreTrainedModel, rows_RT: torch.Tensor, reference: torch.Tensor) -> float:
    divergence = nn.functional.kl_div(_logprobs(model, rows_RT), reference, reduction="sum", log_target=True)
    return max(0.0, float(divergence) / rows_RT.numel())


def _logprobs(model: PreTrainedModel, rows_RT: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows_RT, use_cache=False).logits
    return torch.log_softmax(logits.float(), dim=-1)


@contextmanager
def _stored(
    model: PreTrainedModel,
    part: MatrixPart,
    outlines: Mapping[str, ParameterOutline],
    strategy: PrecisionStrategy,
) -> Generator[bool]:
    """Have a part's weights be what the strategy makes of them; yield whether that is something else."""
    state = model.state_dict()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for place in part.places:
            whole = state[place.parameter]
            weight = whole if place.expert is None else whole[place.expert]
            is_turned = outlines[place.parameter].role is Role.TRANSPOSED
            oriented = (weight.T if is_turned else weight).contiguous()
            decoded = strategy.decode(strategy.encode(oriented), torch.float32)
            kept.append((weight, weight.clone()))
            weight.copy_(decoded.T if is_turned else decoded)
        yield not all(torch.equal(weight, before) for weight, before in kept)
    finally:
        for weight, before in kept:
            weight.copy_(before)
