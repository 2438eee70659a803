"""Makes a shape larger or smaller: experts first, then layers, as near as they come to a number of parameters. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teengined.core.errors import RequestError
from teengined.core.quantities import format_count
from teengined.modelpack.shapes import EXPERT_COUNTS

__all__ = ["ShapeSizes", "scaled_config"]

# Twice the experts of a layer before there are more layers: models have grown in both.
_MOST_EXPERTS_FACTOR = 2
_MAX_LAYERS = 1000
# Beyond this distance the wish is refused: a package of half the size is not what was asked for.
_TOLERANCE = 0.1
# Lists with an entry for each layer; the class derives them anew for another number of layers.
_PER_LAYER_KEYS = ("layer_types", "mlp_layer_types")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSizes:
    """Parameters of a model, part by part."""

    outside_layers: int
    """Embedding and head."""
    dense_of_layer: tuple[int, ...]
    """Of each layer, without its routed experts."""
    expert_of_layer: tuple[int, ...]
    """Of one routed expert of each layer; 0 where the layer has none."""

    def total(self, num_layers: int, num_experts: int) -> int:
        """Return the parameters with other numbers of layers and experts; layers beyond the last are like the last."""
        indexes = [min(layer, len(self.dense_of_layer) - 1) for layer in range(num_layers)]
        dense = sum(self.dense_of_layer[index] for index in indexes)
        return self.outside_layers + dense + num_experts * sum(self.expert_of_layer[index] for index in indexes)


def scaled_config(config: Mapping[str, Any], sizes: ShapeSizes, wish: int) -> dict[str, Any]:
    """Return the configuration with about `wish` parameters.

    Raises:
        RequestError: the shape cannot come near; the message has the nearest number.
    """
    num_layers = int(config["num_hidden_layers"])
    key = next((key for key in EXPERT_COUNTS if config.get(key)), None)
    if key is None:
        layers, experts = _nearest(sizes, range(1, _MAX_LAYERS + 1), [0], wish)
    else:
        layers, experts = _with_experts(config, sizes, int(config[key]), wish)
    reached = sizes.total(layers, experts)
    if abs(reached - wish) > _TOLERANCE * wish:
        raise RequestError(
            f"this shape has no variant of {format_count(wish)} parameters: the nearest has {format_count(reached)}",
            hint="ask for that number, or for another shape with --like",
        )
    changed = {"num_hidden_layers": layers} if key is None else {"num_hidden_layers": layers, key: experts}
    kept = {name: value for name, value in config.items() if layers == num_layers or name not in _PER_LAYER_KEYS}
    return {**kept, **changed}


def _with_experts(config: Mapping[str, Any], sizes: ShapeSizes, num_experts: int, wish: int) -> tuple[int, int]:
    """Keep the layers while experts alone can make it, else take fewest or most experts and change the layers."""
    num_layers = int(config["num_hidden_layers"])
    step = int(config.get("n_group") or 1)
    fewest = _fewest_experts(config, step)
    most = max(fewest, _MOST_EXPERTS_FACTOR * num_experts // step * step)
    if sizes.total(num_layers, fewest) <= wish <= sizes.total(num_layers, most):
        return _nearest(sizes, [num_layers], range(fewest, most + 1, step), wish)
    experts = fewest if wish < sizes.total(num_layers, fewest) else most
    first = next((layer for layer, size in enumerate(sizes.expert_of_layer) if size), 0) + 1
    return _nearest(sizes, range(first, _MAX_LAYERS + 1), [experts], wish)


def _fewest_experts(config: Mapping[str, Any], num_groups: int) -> int:
    """Return how many experts the router needs at least: those of a token, from the groups that it may take them of."""
    of_token = int(config.get("num_experts_per_tok") or 1)
    if num_groups == 1:
        return of_token
    in_group = max(2, math.ceil(of_token / int(config.get("topk_group") or num_groups)))
    return in_group * num_groups


def _nearest(sizes: ShapeSizes, layers: Sequence[int], experts: Sequence[int], wish: int) -> tuple[int, int]:
    pairs = [(num_layers, num_experts) for num_layers in layers for num_experts in experts]
    return min(pairs, key=lambda pair: abs(sizes.total(*pair) - wish))
