"""Attending to latents gives what attending to their expansion gives, or is left alone."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional

from teengined.interfaces.registry import PluginRegistry
from teengined.models import latent_attention
from teengined.models.attention import attend
from teengined.models.cache import StepCache, current_cache
from teengined.models.latent_attention import LatentAttention, LatentQuery, defer_expansion
from teengined.models.linear import StrategyLinear
from tests.fakes.converted import convert_directory
from tests.fakes.stage_runner import Part, StageRunner
from tests.fakes.tiny_models import build_tiny_model
from tests.unit.models.pools import batch_of, make_pool, make_tables, store

HEADS, PLAIN, ROTATED, VALUE, LATENT = 4, 16, 8, 24, 32
SCALE = 0.2
LONG = 300


class Projecting(nn.Module):
    """A module with latent attention as DeepSeek's has it; `is_swapped`: its projection makes values first."""

    def __init__(self, precision: str, *, is_swapped: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        weight = torch.randn(HEADS * (PLAIN + VALUE), LATENT, generator=generator) / LATENT**0.5
        self.kv_b_proj = StrategyLinear(LATENT, HEADS * (PLAIN + VALUE))
        self.kv_b_proj.strategy = PluginRegistry.load().precisions()[precision]
        self.kv_b_proj.parts = self.kv_b_proj.strategy.encode(weight)
        self.qk_nope_head_dim, self.v_head_dim, self.is_swapped = PLAIN, VALUE, is_swapped

    def expand_kv(self, latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.kv_b_proj(latent).view(latent.shape[0], latent.shape[2], HEADS, -1).transpose(1, 2)
        if self.is_swapped:
            values, keys = states.split([VALUE, PLAIN], dim=-1)
        else:
            keys, values = states.split([PLAIN, VALUE], dim=-1)
        return torch.cat([keys, rotary.expand(-1, HEADS, -1, -1)], dim=-1), values


def inputs(
    num_rows: int, num_new: int, dtype: torch.dtype
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return queries, context and a mask under which every row sees another part of it."""
    generator = torch.Generator().manual_seed(5)
    q_BHTD = torch.randn(num_rows, HEADS, num_new, PLAIN + ROTATED, generator=generator).to(dtype)
    latents = torch.randn(num_rows, 1, LONG, LATENT, generator=generator).to(dtype)
    rotary = torch.randn(num_rows, 1, LONG, ROTATED, generator=generator).to(dtype)
    ends = torch.arange(num_rows * num_new).view(num_rows, num_new, 1) * 7 + 20
    return q_BHTD, (latents, rotary), torch.arange(LONG) < ends


def query(q_BHTD: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None) -> LatentQuery:
    latents, rotary = context
    return LatentQuery(q_BHTD=q_BHTD, latents_B1CL=latents, rotary_B1CR=rotary, mask_BTC=mask, scale=SCALE)


def expanded(
    module: Projecting, q_BHTD: torch.Tensor, context: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
) -> torch.Tensor:
    keys, values = Projecting.expand_kv(module, *context)
    mask = None if mask is None else mask[:, None]
    q, keys, values = (each.double() for each in (q_BHTD, keys, values))
    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=SCALE).transpose(1, 2)


@pytest.mark.parametrize("is_masked", [False, True], ids=["all seen", "masked"])
@pytest.mark.parametrize(("num_rows", "num_new"), [(1, 1), (5, 1), (1, 7)])
@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [("fp32", torch.float32, 1e-5), ("int8", torch.float32, 1e-3), ("bf16", torch.bfloat16, 0.02)],
)
def test_answers_are_those_of_the_expansion(
    precision: str, dtype: torch.dtype, tolerance: float, num_rows: int, num_new: int, *, is_masked: bool
) -> None:
    module = Projecting(precision)
    attention = LatentAttention(module)
    q_BHTD, context, mask = inputs(num_rows, num_new, dtype)
    wanted_mask = mask if is_masked else None
    expected = expanded(module, q_BHTD, context, wanted_mask)

    first = attention.attend(query(q_BHTD, context, wanted_mask))
    assert attention.is_absorbed
    second = attention.attend(query(q_BHTD, context, wanted_mask))

    for found in (first, second):
        assert found.shape == (num_rows, num_new, HEADS, VALUE)
        assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(("num_rows", "num_new"), [(5, 1), (1, 7)])
def test_half_precision_on_a_cpu_is_computed_in_single(num_rows: int, num_new: int) -> None:
    module = Projecting("fp32")
    attention = LatentAttention(module)
    q_BHTD, context, mask = inputs(num_rows, num_new, torch.float16)
    attention.attend(query(q_BHTD, context, mask))
    assert attention.is_absorbed

    found = attention.attend(query(q_BHTD, context, mask))

    expected = expanded(module, q_BHTD.float(), (context[0].float(), context[1].float()), mask)
    assert found.dtype == torch.float16
    assert (found.double() - expected).norm() <= 3e-4 * expected.norm()  # What rounding the answer alone may cost.


def test_a_module_whose_projection_means_something_else_goes_on_expanding() -> None:
    module = Projecting("fp32", is_swapped=True)
    attention = LatentAttention(module)
    q_BHTD, context, mask = inputs(2, 1, torch.float32)

    assert attention.is_less_work(1, 2 * LONG)
    found = attention.attend(query(q_BHTD, context, mask))

    torch.testing.assert_close(found.double(), expanded(module, q_BHTD, context, mask), atol=1e-5, rtol=1e-5)
    assert not attention.is_absorbed
    assert not attention.is_less_work(1, 2 * LONG)


def test_a_module_of_another_form_goes_on_expanding() -> None:
    module = Projecting("fp32")
    module.v_head_dim = VALUE + 1
    attention = LatentAttention(module)
    q_BHTD, context, mask = inputs(1, 1, torch.float32)

    found = attention.attend(query(q_BHTD, context, mask))

    torch.testing.assert_close(found.double(), expanded(module, q_BHTD, context, mask), atol=1e-5, rtol=1e-5)
    assert not attention.is_less_work(1, LONG)


class Narrow(Projecting):
    """Keeps more in its latents than its projection reads."""

    def expand_kv(self, latent: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().expand_kv(latent[..., :LATENT], rotary)


def test_a_module_that_does_something_to_its_latents_first_goes_on_expanding() -> None:
    module = Narrow("fp32")
    attention = LatentAttention(module)
    q_BHTD, context, mask = inputs(1, 1, torch.float32)
    wide = torch.cat((context[0], context[0]), dim=-1)

    found = attention.attend(query(q_BHTD, (wide, context[1]), mask))

    torch.testing.assert_close(found.double(), expanded(module, q_BHTD, context, mask), atol=1e-5, rtol=1e-5)
    assert not attention.is_less_work(1, LONG)


def test_answers_that_are_not_numbers_decide_nothing() -> None:
    attention = LatentAttention(Projecting("fp32"))
    q_BHTD, context, mask = inputs(1, 1, torch.float32)

    attention.attend(query(q_BHTD * float("nan"), context, mask))
    assert not attention.is_absorbed
    assert attention.is_less_work(1, LONG)

    attention.attend(query(q_BHTD, context, mask))
    assert attention.is_absorbed


def test_short_contexts_and_long_chunks_are_expanded() -> None:
    attention = LatentAttention(Projecting("fp32"))
    assert not attention.is_less_work(1, 100)
    assert not attention.is_less_work(512, 4000)
    assert attention.is_less_work(16, 4000)


def test_only_modules_with_latents_are_changed() -> None:
    projecting, other = Projecting("fp32"), nn.Linear(2, 2)
    defer_expansion(nn.ModuleList([projecting, other]))
    latent, rotary = torch.ones(1, 1, 3, LATENT), torch.ones(1, 1, 3, ROTATED)
    assert projecting.expand_kv(latent, rotary) == (latent, rotary)
    assert not hasattr(other, "latent_attention")


def attended(
    module: Projecting, states: list[tuple[torch.Tensor, ...]], num_new: list[int], window: int | None
) -> list[torch.Tensor]:
    """Store latents and rotated keys of sequences, the new tokens' last; return the answers of each's new ones."""
    pool = make_pool(LATENT + ROTATED, num_blocks=240, num_kv_heads=1)
    tables = make_tables([LONG] * len(states), pool)
    output: list[torch.Tensor] = []
    for spans in ([(0, LONG - new) for new in num_new], [(LONG - new, LONG) for new in num_new]):
        cache = StepCache(batch_of(pool, tables, spans), is_strict=False)
        token = current_cache.set(cache)
        cut = [[each[kind][:, :, slice(*span)] for each, span in zip(states, spans, strict=True)] for kind in (1, 2)]
        keys, values = module.expand_kv(*store(cache, *cut))
        if spans[0][0]:
            query = torch.cat([each[0] for each in states], dim=2)
            answers, _ = attend(module, query, keys, values, None, scaling=SCALE, sliding_window=window)
            output = list(answers[0].split(num_new))
        current_cache.reset(token)
    return output


@pytest.mark.parametrize("window", [None, 1, 30, 200], ids=lambda window: f"window {window}")
def test_rows_see_their_window_of_their_own_sequence_and_no_fault_of_another(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_attention, "_LEAST_CONTEXT_TOKENS", 1)
    generator = torch.Generator().manual_seed(7)
    num_new = [1, 1, 5]
    states = [
        tuple(torch.randn(*shape, generator=generator) for shape in ((1, HEADS, new, PLAIN + ROTATED),
        (1, 1, LONG, LATENT), (1, 1, LONG, ROTATED)))
        for new in num_new
    ]  # fmt: skip
    module = Projecting("fp32")
    defer_expansion(nn.ModuleList([module]))
    latents = cast("LatentAttention", module.latent_attention)
    attended(module, states, num_new, None)
    assert latents.is_absorbed

    answers = attended(module, states, num_new, window)
    states[1][1][:] = float("nan")
    beside_a_fault = attended(module, states, num_new, window)

    places = torch.arange(LONG)
    for index, new in enumerate(num_new):
        ends = torch.arange(LONG - new, LONG)[:, None]
        mask = (places <= ends) & (places > ends - (window or LONG))
        query, *context = states[index]
        if index == 1:
            assert bool(beside_a_fault[index].isnan().all())
            continue
        expected = expanded(module, query, (context[0], context[1]), mask[None])[0]
        for found in (answers, beside_a_fault):
            torch.testing.assert_close(found[index].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantised", [False, True], ids=["kv as computed", "kv in int8"])
@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_a_whole_model_decodes_and_checks_guesses_as_with_expansion(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, quantised: bool
) -> None:
    (tmp_path / "store").mkdir()
    source = build_tiny_model("deepseek_v3", tmp_path / "source", dtype=torch.bfloat16)
    convert_directory(source, tmp_path / "store", precision=precision)
    monkeypatch.setattr(latent_attention, "_LEAST_CONTEXT_TOKENS", 64)
    found = _logits(tmp_path / "store" / "tiny", quantised=quantised, is_absorbed=True)
    monkeypatch.setattr(latent_attention, "_LEAST_CONTEXT_TOKENS", 1 << 30)
    expected = _logits(tmp_path / "store" / "tiny", quantised=quantised, is_absorbed=False)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() <= 0.03 * theirs.norm()


def _logits(package: Path, *, quantised: bool, is_absorbed: bool) -> list[torch.Tensor]:
    """Run three prompts, then single tokens of all together twice, and three tokens at once of the longest."""
    prompts = torch.randint(3, 300, (3, 256), generator=torch.Generator().manual_seed(1)).tolist()
    ends = (250, 120, 90)

    def part(sequence: int, start: int, end: int) -> Part:
        table = list(range(sequence * 16, sequence * 16 + 16))
        return Part(token_ids=prompts[sequence][start:end], start_position=start, table=table)

    with StageRunner(package, is_strict=False, quantised=quantised) as runner:
        rows = runner.run(*(part(i, 0, end) for i, end in enumerate(ends)))
        for step in range(2):
            rows += runner.run(*(part(i, end + step, end + step + 1) for i, end in enumerate(ends)))
        rows += runner.run(part(0, 252, 255), part(1, 122, 123))
        modules: list[Any] = [layer.self_attn for layer in cast("Any", runner)._model._skeleton.layers]
        assert all(module.latent_attention.is_absorbed == is_absorbed for module in modules)
    return rows
