"""A skeleton is transformers' own class, and building one leaves the process as it was."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from teengined.models.skeleton import SkeletonOptions, build_skeleton, num_kv_heads
from tests.fakes.tiny_models import tiny_config


def options(**changes: Any) -> SkeletonOptions:
    given: dict[str, Any] = {
        "compute_dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "context_tokens": 64,
        **changes,
    }
    return SkeletonOptions(**given)


def test_stages_that_open_at_once_leave_the_default_dtype_alone() -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: build_skeleton(tiny_config("llama"), options()), range(16)))

    assert len(built) == 16
    assert torch.get_default_dtype() == torch.float32


# gpt2 ignores the number of key-value heads that its configuration may name; what it keeps tells of more.
@pytest.mark.parametrize(
    ("architecture", "elements", "expected"), [("llama", 64, 2), ("gpt2", 128, 4), ("deepseek_v3", 24, 1)]
)
def test_heads_that_are_kept_for_a_token_are_counted(architecture: str, elements: int, expected: int) -> None:
    assert num_kv_heads(tiny_config(architecture), elements) == expected


def frequencies(rope: Mapping[str, object], context_tokens: int, position: int) -> torch.Tensor:
    """Return the rotary cosines of position 1 in a batch whose longest position is `position`."""
    config = tiny_config("phi3", original_max_position_embeddings=32, rope_parameters=rope, max_position_embeddings=256)
    base: Any = build_skeleton(config, options(compute_dtype=torch.float32, context_tokens=context_tokens)).base
    with torch.inference_mode():
        cosines, _ = base.rotary_emb(torch.zeros(1), torch.tensor([[1, position]]))
    return cosines[0, 0]


LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 32,
}


def test_rotary_frequencies_do_not_depend_on_a_batch_s_longest_position() -> None:
    for context_tokens in (32, 200):
        assert torch.equal(frequencies(LONG, context_tokens, 2), frequencies(LONG, context_tokens, 150))


def test_rotary_frequencies_are_those_of_the_deployment_s_context() -> None:
    assert not torch.equal(frequencies(LONG, 32, 2), frequencies(LONG, 33, 2))
