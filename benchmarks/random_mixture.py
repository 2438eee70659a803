"""A mixture of experts with random weights whose routing is as uneven as that of real models.

Random routers would send tokens to all experts alike, and no cache could do better than its share of the bytes. Real
models prefer some: here every embedding has a part in common, each router's rows lean along it by a fixed amount for
each expert, falling with the logarithm of a rank (so that popularity follows a power law), and the ranks are shuffled
in every layer. The rest of a token's embedding decides against that bias, so that tokens still differ. Which experts
follow each other is random: real texts, whose neighbouring tokens go alike, are kinder to a cache.

Experts are stored as the model class holds them, stacked in one tensor a layer: all engines read that.
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.random_checkpoint import CONFIG, Shapes, attention_shapes, random_matrix, write_checkpoint

__all__ = ["SMALL_MIXTURE", "RandomMixture", "common_direction", "router_rows", "write_random_mixture"]

_RANK_SEED = 21
# How far the logits of experts fall with the logarithm of their rank. With the sizes below, the most popular quarter
# of a layer's experts gets half to two thirds of its tokens.
_BIAS_PER_LOG_RANK = 0.4
# Of an embedding's common part; its own part has 1.
_COMMON_SCALE = 1.5
# Of what layers add to that, which is little: what they make of the common part would grow from layer to layer, and
# with it the preference for a few experts.
_ADDED_SCALE = 0.1
_ADDING = (".self_attn.o_proj.weight", ".mlp.experts.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomMixture:
    """Sizes, under the names of transformers' configuration for Mixtral."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    """Of one expert."""
    num_local_experts: int
    num_experts_per_tok: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int = 4096

    @property
    def num_expert_parameters(self) -> int:
        """Of all experts of all layers."""
        return self.num_hidden_layers * self.num_local_experts * 3 * self.hidden_size * self.intermediate_size


# 2.8 billion parameters, of which 0.6 work for a token; an expert has 4.7 million, as those of Qwen3-30B-A3B.
SMALL_MIXTURE = RandomMixture(
    num_hidden_layers=16,
    hidden_size=2048,
    intermediate_size=768,
    num_local_experts=32,
    num_experts_per_tok=4,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=49152,
)


def write_random_mixture(sizes: RandomMixture, directory: Path) -> Path:
    """Write config, tokenizer and one bf16 shard a module into `directory`; memory for one layer only."""
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **CONFIG,
        "sliding_window": None,
        "rms_norm_eps": 1e-6,
        **asdict(sizes),
    }
    return write_checkpoint(config, _shards(sizes), directory, _draw)


def router_rows(num_experts: int, width: int, seed: int) -> torch.Tensor:
    """Return a router's matrix (E, I): random rows that lean along the common direction by their expert's rank."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(num_experts, generator=generator) + 1
    bias_E = -_BIAS_PER_LOG_RANK * ranks.log()
    common_I = common_direction(width)
    noise_EI = torch.randn((num_experts, width), generator=generator) * width**-0.5
    noise_EI -= (noise_EI @ common_I)[:, None] * common_I / width  # or chance would bias experts more than their ranks
    return noise_EI + bias_E[:, None] * common_I / width


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name == "model.embed_tokens.weight":
        own = torch.randn(shape, generator=generator)
        return (own + _COMMON_SCALE * common_direction(shape[1])).to(torch.bfloat16)
    if name.endswith(".mlp.gate.weight"):
        layer = int(name.split(".")[2])
        return router_rows(*shape, seed=_RANK_SEED + layer).to(torch.bfloat16)
    if name.endswith(_ADDING):
        return random_matrix(shape, generator) * _ADDED_SCALE
    return random_matrix(shape, generator)


@functools.cache
def common_direction(width: int) -> torch.Tensor:
    """Return the direction that all embeddings share: signs."""
    return torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(_RANK_SEED)) * 2.0 - 1


def _shards(sizes: RandomMixture) -> list[Shapes]:
    width, inner, num_experts = sizes.hidden_size, sizes.intermediate_size, sizes.num_local_experts
    layer = {
        **attention_shapes(width, width // sizes.num_attention_heads * sizes.num_key_value_heads),
        "mlp.gate.weight": (num_experts, width),
        "mlp.experts.gate_up_proj": (num_experts, 2 * inner, width),
        "mlp.experts.down_proj": (num_experts, width, inner),
    }
    layers: list[Shapes] = [
        {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
        for number in range(sizes.num_hidden_layers)
    ]
    embedding = {"model.embed_tokens.weight": (sizes.vocab_size, width)}
    norm, head = {"model.norm.weight": (width,)}, {"lm_head.weight": (sizes.vocab_size, width)}
    return [embedding, *layers, norm, head]
