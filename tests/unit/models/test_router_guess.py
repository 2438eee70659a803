"""A layer's own router says early what it will ask for, in every architecture that routes to experts."""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
import torch

from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from teengined.models.batch import BatchEntry, StepBatch
from teengined.models.kv import KVPool, PoolShape
from teengined.models.skeleton import SkeletonOptions, build_skeleton, num_kv_heads, read_config
from teengined.models.stage_model import StageModel
from teengined.weights.stage_weights import StageWeights, UnitTensors
from tests.fakes.converted import convert_directory
from tests.fakes.separate_device import cpu_device
from tests.fakes.tiny_models import build_tiny_model
from tests.integration.test_expert_parity import MODELS, plan_with
from tests.unit.weights.test_expert_store import OPTIONS

OTHERS = ("qwen2_moe", "olmoe", "deepseek_v2", "granitemoe", "minimax_m2", "phimoe")
CONTEXT_TOKENS = 64


class Listening:
    """The weights of a stage, which remember what was guessed and what was asked for."""

    def __init__(self, weights: StageWeights, *, is_guessing: bool = True) -> None:
        self._weights = weights
        self._is_guessing = is_guessing
        self.guessed: dict[int, list[int]] = {}
        self.asked: dict[int, list[int]] = {}
        self.acquire, self.release = weights.acquire, weights.release
        self.rewind, self.embedding_rows = weights.rewind, weights.embedding_rows

    def is_guessing_experts(self, num_rows: int) -> bool:
        return self._is_guessing

    def guess_experts(self, layer: int, experts: Sequence[int]) -> None:
        self.guessed[layer] = list(experts)

    def fetch_experts(
        self, layer: int, experts: Sequence[int], *, in_order: bool
    ) -> Generator[tuple[int, UnitTensors]]:
        self.asked[layer] = list(experts)
        return self._weights.fetch_experts(layer, experts, in_order=in_order)


class Stage:
    """A whole model with a cache for some of its experts."""

    def __init__(self, package_dir: Path, *, is_guessing: bool = True) -> None:
        manifest, config = read_manifest(package_dir), read_config(package_dir)
        stage, device = plan_with(package_dir, 4).stages[0], cpu_device()
        weights = StageWeights(package_dir=package_dir, manifest=manifest, stage=stage, device=device, options=OPTIONS)
        weights.open()
        self.weights = Listening(weights, is_guessing=is_guessing)
        elements = manifest.kv_elements_per_token
        shape = PoolShape(
            num_blocks=8,
            block_tokens=16,
            elements_per_token=dict(enumerate(elements)),
            num_kv_heads=num_kv_heads(config, max(elements)),
            dtype=torch.float32,
            quantised=False,
        )
        self.pool = KVPool(device, shape)
        options = SkeletonOptions(
            compute_dtype=torch.float32, device=torch.device("cpu"), context_tokens=CONTEXT_TOKENS
        )
        self.model = StageModel(
            skeleton=build_skeleton(config, options),
            manifest=manifest,
            stage=stage,
            weights=self.weights,
            precisions=PluginRegistry.load().precisions(),
        )
        self.position = 0

    def run(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Run one step and return the last hidden states."""
        entry = BatchEntry(table=(0, 1, 2, 3), num_tokens=len(token_ids), start_position=self.position)
        self.position += len(token_ids)
        found: list[torch.Tensor] = []
        batch = StepBatch([entry], self.pool)
        self.model.forward(batch, torch.tensor(token_ids), lambda head: found.append(head.hidden_TD.clone()))
        return found[0]


@pytest.fixture(scope="module", params=[*MODELS, *OTHERS])
def package_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = "deepseek_v3" if request.param == "kimi_k2" else request.param
    directory = tmp_path_factory.mktemp(request.param)
    source = build_tiny_model(architecture, directory / "source", seed=5, **MODELS.get(request.param, {}))
    (directory / "store").mkdir()
    convert_directory(source, directory / "store")
    return directory / "store" / "tiny"


def test_guesses_are_made_of_each_layer_that_routes_and_are_mostly_right(package_dir: Path) -> None:
    stage = Stage(package_dir)
    stage.run([5, 9, 100, 7])
    right = guessed = 0
    for token in (11, 250, 42, 99, 3, 180):
        stage.run([token])
        assert stage.weights.guessed.keys() == stage.weights.asked.keys() != set()
        for layer, asked in stage.weights.asked.items():
            assert len(stage.weights.guessed[layer]) == len(asked)
            right += len(set(asked) & set(stage.weights.guessed[layer]))
            guessed += len(asked)

    assert right > 0.5 * guessed


def test_no_bit_depends_on_guesses(package_dir: Path) -> None:
    plain, guessing = Stage(package_dir, is_guessing=False), Stage(package_dir)

    for token_ids in ([5, 9, 100, 7], [11], [250], [42, 8]):
        assert torch.equal(plain.run(token_ids), guessing.run(token_ids))
    assert not plain.weights.guessed


def test_with_no_attention_every_guess_is_right_and_the_heaviest_comes_first(package_dir: Path) -> None:
    stage = Stage(package_dir)
    for layer in stage.model._skeleton.layers:
        attention = next(child for name, child in layer.named_children() if "attn" in name)
        attention.register_forward_hook(silence)
    stage.run([5])
    stage.run([9])

    for layer, asked in stage.weights.asked.items():
        assert sorted(stage.weights.guessed[layer]) == asked


def silence(module: torch.nn.Module, inputs: object, output: object) -> object:
    """Have attention add nothing."""
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    assert isinstance(output, torch.Tensor)
    return torch.zeros_like(output)
