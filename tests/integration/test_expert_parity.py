"""With experts that come on demand, tokens are those of transformers, whatever is cached and whoever gives way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.local_pipeline import LocalPipeline, PipelineOptions
from benchmarks.unmeasured import plan_without_measuring
from teengined.core.device import DeviceSpec
from teengined.core.errors import PackageCorrupt
from teengined.core.plan import Plan
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.manifest import read_manifest
from tests.fakes.converted import convert_directory
from tests.fakes.tiny_models import build_tiny_model

NUM_TOKENS, CONTEXT_TOKENS = 10, 64
POLICIES = ("lru", "lfu", "pinned", "sticky", "auto")
SPEC = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1 << 30, threads=1)

# Each asks for more experts in a layer than the smallest cache holds of all layers.
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 4},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 3},
    "deepseek_v3": {"n_routed_experts": 8, "num_experts_per_tok": 4, "topk_group": 2},
    "gpt_oss": {"num_local_experts": 6, "num_experts_per_tok": 4},
    "glm4_moe": {"n_routed_experts": 8, "num_experts_per_tok": 4},
    # Kimi-K2: one group, many experts, one shared, the first layer dense.
    "kimi_k2": {"n_routed_experts": 24, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1},
}


@dataclass(frozen=True)
class Case:
    package_dir: Path
    prompts: list[list[int]]
    expected: list[list[int]]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture = "deepseek_v3" if request.param == "kimi_k2" else request.param
    directory = tmp_path_factory.mktemp(request.param)
    source = build_tiny_model(architecture, directory / "source", seed=5, **MODELS[request.param])
    (directory / "store").mkdir()
    convert_directory(source, directory / "store")
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 320, (length,), generator=generator).tolist() for length in (1, 9, 14)]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    return Case(directory / "store" / "tiny", prompts, [greedy(model, prompt) for prompt in prompts])


def greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return output[0, len(prompt) :].tolist()


def plan_with(package_dir: Path, num_slots: int) -> Plan:
    """Return a plan that streams everything, with `num_slots` slots for experts."""
    manifest = read_manifest(package_dir)
    found = plan_without_measuring(
        manifest, ((SPEC, manifest.num_layers),), resident_fraction=0.0, context_tokens=CONTEXT_TOKENS, num_slots=3
    )
    experts = found.stages[0].experts
    assert experts is not None
    caches = tuple(replace(cache, num_slots=num_slots) for cache in experts.caches)
    return replace(found, stages=(replace(found.stages[0], experts=replace(experts, caches=caches)),))


def open_pipeline(package_dir: Path, num_slots: int, policy: str, **options: Any) -> LocalPipeline:
    plan = plan_with(package_dir, num_slots)
    wanted = PipelineOptions(direct_io=False, expert_policy=policy, **options)
    return LocalPipeline(package_dir, plan, (SPEC,), PluginRegistry.load(), wanted)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("num_slots", [1, 2, 9])
def test_tokens_are_those_of_transformers(case: Case, policy: str, num_slots: int) -> None:
    with open_pipeline(case.package_dir, num_slots, policy) as pipeline:
        assert pipeline.generate(case.prompts, NUM_TOKENS) == case.expected
        alone = [pipeline.generate([prompt], NUM_TOKENS)[0] for prompt in case.prompts]

    assert alone == case.expected


def test_counts_of_a_stage_are_told_with_each_step(case: Case) -> None:
    with open_pipeline(case.package_dir, 9, "pinned") as pipeline:
        pipeline.generate(case.prompts, NUM_TOKENS)
        counts = [step.experts for step in pipeline.last_steps]

    assert all(each is not None for each in counts)
    last = counts[-1]
    assert last is not None
    slot_bytes = plan_with(case.package_dir, 9).stages[0].experts
    assert slot_bytes is not None
    assert last.policy == "pinned"
    assert 0 < last.num_hits == last.num_simulated_hits <= last.num_best_hits < last.num_asked
    assert last.read_bytes == (last.num_asked - last.num_hits) * slot_bytes.caches[0].slot_bytes


def test_strict_numerics_give_the_same_tokens_whatever_is_cached(case: Case) -> None:
    answers = []
    for num_slots, policy in ((1, "lru"), (5, "auto"), (40, "lfu")):
        with open_pipeline(case.package_dir, num_slots, policy, numerics="strict") as pipeline:
            answers.append(pipeline.generate(case.prompts, NUM_TOKENS))

    assert answers[0] == answers[1] == answers[2]


def test_tokens_are_the_same_while_experts_are_guessed_and_while_not(case: Case) -> None:
    with open_pipeline(case.package_dir, 33, "auto", expert_guesses=2) as pipeline:
        for _ in range(14):  # Long enough that both have been tried several times.
            assert pipeline.generate(case.prompts, NUM_TOKENS) == case.expected
        counts = pipeline.last_steps[-1].experts

    assert counts is not None
    assert counts.num_hits == counts.num_simulated_hits


def test_a_model_whose_experts_do_not_fit_has_them_read_ahead_and_loses_no_bit(tmp_path: Path) -> None:
    source = build_tiny_model(
        "deepseek_v3", tmp_path / "source", seed=5, n_routed_experts=32, num_experts_per_tok=8, n_group=1, topk_group=1
    )
    (tmp_path / "store").mkdir()
    convert_directory(source, tmp_path / "store")
    package_dir = tmp_path / "store" / "tiny"
    answers = []
    for num_guesses in (0, 2):
        with open_pipeline(package_dir, 33, "auto", expert_guesses=num_guesses, numerics="strict") as pipeline:
            answers.append([pipeline.generate([[5, 6, 7]], NUM_TOKENS) for _ in range(14)])
            counts = pipeline.last_steps[-1].experts
        assert counts is not None
        assert (counts.num_guessed > 0) == (num_guesses > 0)
        assert counts.num_guessed >= counts.num_guessed_right
        slot_bytes = plan_with(package_dir, 33).stages[0].experts
        assert slot_bytes is not None
        assert counts.read_bytes == (counts.num_asked - counts.num_hits) * slot_bytes.caches[0].slot_bytes

    assert answers[0] == answers[1]


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_quantised_experts_that_come_one_by_one_give_what_resident_ones_give(
    name: str, precision: str, tmp_path: Path
) -> None:
    architecture = "deepseek_v3" if name == "kimi_k2" else name
    source = build_tiny_model(architecture, tmp_path / "source", seed=5, **MODELS[name])
    (tmp_path / "store").mkdir()
    manifest = convert_directory(source, tmp_path / "store", precision=precision)
    package_dir = tmp_path / "store" / "tiny"
    assert {unit.precision for unit in manifest.units if unit.expert is not None} == {precision}
    prompts = [[5, 6, 7], [200], list(range(30, 42))]
    resident = plan_without_measuring(
        manifest, ((SPEC, manifest.num_layers),), resident_fraction=None, context_tokens=CONTEXT_TOKENS, num_slots=3
    )
    assert resident.stages[0].experts is None
    strict = PipelineOptions(direct_io=False, numerics="strict")
    with LocalPipeline(package_dir, resident, (SPEC,), PluginRegistry.load(), strict) as pipeline:
        expected = pipeline.generate(prompts, NUM_TOKENS)

    for num_slots in (1, 9, 33):
        with open_pipeline(package_dir, num_slots, "auto", numerics="strict", expert_guesses=2) as pipeline:
            assert pipeline.generate(prompts, NUM_TOKENS) == expected
            assert [pipeline.generate([prompt], NUM_TOKENS)[0] for prompt in prompts] == expected


def test_an_altered_expert_fails_the_step_that_asks_for_it_and_is_named(tmp_path: Path) -> None:
    source = build_tiny_model("mixtral", tmp_path / "source", seed=5)
    (tmp_path / "store").mkdir()
    manifest = convert_directory(source, tmp_path / "store")
    package_dir = tmp_path / "store" / "tiny"
    for unit in manifest.units:
        if unit.expert is not None and unit.layer == 1:
            with (package_dir / unit.file).open("r+b") as file:
                file.seek(unit.offset_bytes + 5)
                file.write(b"\xff")

    with open_pipeline(package_dir, 2, "auto") as pipeline:
        for _ in range(2):
            with pytest.raises(PackageCorrupt, match=r"unit layer\.1\.expert\."):
                pipeline.generate([[5, 6, 7]], 2)
