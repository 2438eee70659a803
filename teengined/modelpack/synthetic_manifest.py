"""The manifest of a synthetic package: every slot as a unit, in the place where its content lies."""

from collections.abc import Mapping
from dataclasses import replace

from teengined.core.model import MANIFEST_SCHEMA, ModelManifest, TensorSpec, UnitSpec
from teengined.core.quantities import format_bytes, format_count
from teengined.modelpack.outline import ModelOutline
from teengined.modelpack.synthetic_plan import Content, Slot, SyntheticPlan

__all__ = ["describe"]


def describe(
    outline: ModelOutline, plan: SyntheticPlan, contents: Mapping[Content, UnitSpec], *, like: str
) -> ModelManifest:
    """Return the manifest; name, dtypes and digests of companions are the caller's to fill in."""
    text = outline.model.config.get_text_config()
    num_experts = outline.num_experts
    manifest = ModelManifest(
        schema=MANIFEST_SCHEMA,
        name="",
        source=f"random weights, like {like}",
        architecture=outline.model.config.model_type,
        num_layers=len(outline.layers),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_context_tokens=text.max_position_embeddings,
        kv_elements_per_token=outline.kv_elements_per_token,
        compute_dtype="",
        precision="",
        eos_token_ids=(),
        config_digest="",
        tokenizer_digest="",
        num_experts=num_experts,
        num_experts_per_token=min(getattr(text, "num_experts_per_tok", 0) or 0, num_experts),
        tied_parameters=dict(outline.tied),
        units=_units(plan, contents),
    )
    return replace(manifest, numeric_notes=(_note(manifest),))


def _units(plan: SyntheticPlan, contents: Mapping[Content, UnitSpec]) -> tuple[UnitSpec, ...]:
    units: list[UnitSpec] = []
    tables: dict[tuple[object, ...], tuple[TensorSpec, ...]] = {}
    for slot, content in plan.slots:
        unit = contents[content]
        key = (slot.layer, content[0])
        if key not in tables:  # The experts of a layer have one table of tensors: names tell the layer only.
            tables[key] = _renamed(unit, slot)
        units.append(
            replace(unit, id=slot.id, kind=slot.kind, layer=slot.layer, expert=slot.expert, tensors=tables[key])
        )
    return tuple(units)


def _renamed(unit: UnitSpec, slot: Slot) -> tuple[TensorSpec, ...]:
    """Return the tensors of a content under the names that the slot's layer gives them."""
    written = dict.fromkeys(tensor.parameter for tensor in unit.tensors)
    names = dict(zip(written, (parameter.name for parameter in slot.parameters), strict=True))
    return tuple(replace(tensor, parameter=names[tensor.parameter]) for tensor in unit.tensors)


def _note(manifest: ModelManifest) -> str:
    """Say how much is real."""
    share = manifest.stored_bytes / manifest.size_bytes
    places = len({(unit.file, unit.offset_bytes) for unit in manifest.units})
    return (
        f"random weights: the output is noise; {format_count(manifest.num_parameters)} parameters in "
        f"{len(manifest.units)} units of {format_bytes(manifest.size_bytes)}, which share {places} distinct contents "
        f"of {format_bytes(manifest.stored_bytes)} on disk ({share:.2%})"
    )
