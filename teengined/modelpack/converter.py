"""Makes a model package from a checkpoint.

Memory: the converter holds the tensors of the checkpoint that make one parameter, that parameter, and its encoding
twice while its blocks are joined. So it needs, beyond the process itself (about 300 MB with torch and transformers),

    at most 4 x the largest parameter, in fp32 or the checkpoint's dtype, whichever is wider, + 256 MB for blocks

A layer's experts count as one parameter only where the checkpoint itself fuses them into one tensor. The bound does not
grow with the number of layers, nor with the number of experts of checkpoints that keep them apart.
`tests/integration/test_conversion_memory.py` holds it to that.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from teengined.core.model import MANIFEST_SCHEMA, ModelManifest, UnitSpec
from teengined.interfaces.precision import PrecisionStrategy
from teengined.interfaces.source import Checkpoint
from teengined.modelpack.assembly import TensorProvider, UnitFile, estimate_bytes, header_room, plan_files, write_units
from teengined.modelpack.binding import Binding, bind
from teengined.modelpack.choices import resolve_compute_dtype, source_dtypes
from teengined.modelpack.companions import eos_token_ids, write_companions
from teengined.modelpack.disk_guard import check_room, discarding_on_error, intact, mapping_disk_errors
from teengined.modelpack.disk_rates import measured_disks
from teengined.modelpack.encoding import ParameterEncoder
from teengined.modelpack.manifest import read_manifest, write_manifest
from teengined.modelpack.matrix_places import matrix_places
from teengined.modelpack.naming import check_name
from teengined.modelpack.precision_rules import PrecisionRule, resolve_rules
from teengined.modelpack.progress import ProgressMeter, ReportProgress
from teengined.modelpack.spread import lay_out
from teengined.modelpack.unitfile import UnitFileWriter
from teengined.modelpack.verify import digest_of
from teengined.modelpack.workspace import Workspace, open_workspace

__all__ = ["ConversionOptions", "convert"]

# More rules than a person wrote are told in one note.
_NUM_NOTED_RULES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """What to make, and where."""

    name: str
    store: Path
    compute_dtype: str = "auto"
    disks: tuple[Path, ...] = ()
    """Directories on other disks that unit files are spread over, as fast as each reads."""
    rules: tuple[PrecisionRule, ...] = ()
    """Matrices that are stored otherwise."""
    strategies: Mapping[str, PrecisionStrategy] = field(default_factory=dict[str, PrecisionStrategy])
    """Those that the rules name."""
    attachments: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further small files of the package, by name."""
    report: ReportProgress
    clock: Callable[[], float]
    """Monotonic seconds, for rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    checkpoint: Checkpoint
    strategy: PrecisionStrategy
    options: ConversionOptions
    binding: Binding
    compute_dtype: str


def convert(checkpoint: Checkpoint, strategy: PrecisionStrategy, options: ConversionOptions) -> ModelManifest:
    """Convert `checkpoint` to the package `options.name`, its matrices stored by `strategy` or as rules say.

    Returns its manifest.

    An interrupted conversion of the same source with the same options goes on where it was; any error removes what was
    written. An older package of that name stays whole until the new one is complete.

    Raises:
        SourceError: the checkpoint is unusable, incomplete or unsupported.
        RequestError: a rule matches nothing.
        Conflict: another conversion to that name runs.
        NotAllowed: the store cannot be written to.
        DiskFull: it does not fit; says how much is needed and how much there is.
    """
    check_name(options.name)
    compute_dtype = resolve_compute_dtype(options.compute_dtype, strategy.name)
    with mapping_disk_errors(options.store), open_workspace(options.store, options.name) as workspace:
        job = _Job(
            checkpoint=checkpoint,
            strategy=strategy,
            options=options,
            binding=bind(checkpoint, compute_dtype),
            compute_dtype=compute_dtype,
        )
        with discarding_on_error(workspace):
            return _write_package(job, workspace)


def _write_package(job: _Job, workspace: Workspace) -> ModelManifest:
    done = intact(workspace, workspace.completed(_fingerprint(job)))
    companions = write_companions(job.checkpoint.write_tokenizer, job.binding.config, workspace.directory)
    units = _write_files(job, workspace, done)
    for name, text in job.options.attachments.items():
        (workspace.directory / name).write_text(text, "utf-8")
    manifest = replace(
        _describe(job, eos_token_ids(workspace.directory, job.binding.config)),
        config_digest=companions["config.json"],
        tokenizer_digest=companions["tokenizer.json"],
        units=units,
    )
    write_manifest(workspace.directory, manifest)
    read_manifest(workspace.directory)
    workspace.publish()
    return manifest


def _write_files(job: _Job, workspace: Workspace, done: Mapping[str, tuple[UnitSpec, ...]]) -> tuple[UnitSpec, ...]:
    encoder = _encoder(job)
    files = plan_files(job.binding.outline)
    waiting = [file for file in files if file.name not in done]
    sizes = {file.name: estimate_bytes(file, encoder) for file in files}
    lay_out(workspace.directory, sizes, measured_disks(job.options.store, job.options.disks))
    check_room(workspace.directory, {file.name: sizes[file.name] for file in waiting})
    outline, options = job.binding.outline, job.options
    provider = TensorProvider(outline=outline, derivations=job.binding.derivations, read=job.checkpoint.read)
    total = sum(_work_bytes(file, encoder) for file in files)
    meter = ProgressMeter("convert", total, report=options.report, clock=options.clock)
    units: list[UnitSpec] = []
    for file in files:
        if file.name in done:
            meter.credit(_work_bytes(file, encoder))
            units.extend(done[file.name])
            continue
        with UnitFileWriter(workspace.directory, file.name, header_room(file)) as writer:
            written = write_units(writer, file, provider, encoder, advance=meter.advance)
        workspace.record(file.name, written)
        units.extend(written)
    return tuple(units)


def _encoder(job: _Job) -> ParameterEncoder:
    chosen = resolve_rules(matrix_places(job.binding.outline), job.options.rules)
    return ParameterEncoder(job.strategy, {place: job.options.strategies[name] for place, name in chosen.items()})


def _work_bytes(file: UnitFile, encoder: ParameterEncoder) -> int:
    return sum(encoder.total_bytes(one) for one in file.parameters)


def _describe(job: _Job, eos: tuple[int, ...]) -> ModelManifest:
    outline, text = job.binding.outline, job.binding.outline.model.config.get_text_config()
    num_experts = outline.num_experts
    return ModelManifest(
        schema=MANIFEST_SCHEMA,
        name=job.options.name,
        source=job.checkpoint.description,
        architecture=outline.model.config.model_type,
        num_layers=len(outline.layers),
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_context_tokens=text.max_position_embeddings,
        kv_elements_per_token=outline.kv_elements_per_token,
        compute_dtype=job.compute_dtype,
        precision=job.strategy.name,
        eos_token_ids=eos,
        config_digest="",
        tokenizer_digest="",
        num_experts=num_experts,
        num_experts_per_token=min(getattr(text, "num_experts_per_tok", 0) or 0, num_experts),
        tied_parameters=job.binding.tied,
        numeric_notes=_numeric_notes(job),
    )


def _numeric_notes(job: _Job) -> tuple[str, ...]:
    counts = source_dtypes(job.checkpoint.tensors())
    from_dtypes = ", ".join(f"{dtype} ({count} values)" for dtype, count in counts.most_common())
    return (
        f"source dtypes: {from_dtypes}",
        f"matrices stored as {job.strategy.name}, everything else as {job.compute_dtype}, or fp32 where the class asks",
        *_rule_notes(job.options.rules),
        *job.binding.notes,
    )


def _rule_notes(rules: Sequence[PrecisionRule]) -> tuple[str, ...]:
    if len(rules) > _NUM_NOTED_RULES:
        return (f"{len(rules)} parts stored each in a precision of its own: see the manifest's units",)
    return tuple(f"{rule.pattern} stored as {rule.precision}" for rule in rules)


def _fingerprint(job: _Job) -> str:
    """Name this conversion, so that only a run of the same one is resumed; empty where the source cannot tell."""
    if not job.checkpoint.fingerprint:
        return ""
    identity = [
        MANIFEST_SCHEMA,
        job.checkpoint.fingerprint,
        json.dumps(job.binding.config, sort_keys=True, default=str),
        job.strategy.name,
        [[rule.pattern, rule.precision] for rule in job.options.rules],
        job.compute_dtype,
        [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in job.checkpoint.tensors()],
    ]
    return digest_of(json.dumps(identity).encode())
