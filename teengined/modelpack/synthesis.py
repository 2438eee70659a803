"""Writes a package of a known shape with random weights: as heavy as the real one to move, and nothing to say.

Its unit table is whole, but units may share their bytes (see `synthetic_plan`), so that a model of a trillion
parameters needs the disk of a small one, while every read of it is a read.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from teengined.core.errors import RequestError
from teengined.core.model import (
    ALIGNMENT_BYTES,
    MANIFEST_SCHEMA,
    TENSOR_ALIGNMENT_BYTES,
    ModelManifest,
    UnitKind,
    UnitSpec,
)
from teengined.interfaces.precision import PrecisionStrategy
from teengined.modelpack.assembly import UnitFile, plan_files
from teengined.modelpack.byte_tokenizer import BOS_ID, EOS_ID, write_byte_tokenizer
from teengined.modelpack.choices import resolve_compute_dtype
from teengined.modelpack.companions import write_companions
from teengined.modelpack.disk_guard import check_room, discarding_on_error, intact, mapping_disk_errors
from teengined.modelpack.disk_rates import measured_disks
from teengined.modelpack.encoding import ParameterEncoder
from teengined.modelpack.manifest import read_manifest, write_manifest
from teengined.modelpack.naming import check_name
from teengined.modelpack.outline import ModelOutline, build_config, build_outline
from teengined.modelpack.progress import ProgressMeter, ReportProgress
from teengined.modelpack.random_content import RandomContent
from teengined.modelpack.shape_scaling import ShapeSizes, scaled_config
from teengined.modelpack.shapes import SCALING_KEYS
from teengined.modelpack.spread import lay_out
from teengined.modelpack.synthetic_manifest import describe
from teengined.modelpack.synthetic_plan import Content, ContentFile, SyntheticPlan, plan_synthetic
from teengined.modelpack.unitfile import UnitFileWriter, header_room_bytes
from teengined.modelpack.verify import digest_of
from teengined.modelpack.workspace import Workspace, open_workspace

__all__ = ["SynthesisOptions", "synthesise"]

# Another way to fill the units makes another package of the same wish.
_METHOD = "turned-rows/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisOptions:
    """What to make, and where."""

    name: str
    store: Path
    like: str
    """For people: what the configuration was taken from."""
    num_parameters: int | None = None
    """About as many; None: as the shape has."""
    distinct_bytes: int | None = None
    """How much may differ; None: everything."""
    ends: PrecisionStrategy | None = None
    """How embedding and head are stored; None: as all else."""
    compute_dtype: str = "auto"
    disks: tuple[Path, ...] = ()
    """Directories on other disks that unit files are spread over, as fast as each reads."""
    report: ReportProgress
    clock: Callable[[], float]
    """Monotonic seconds, for rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    options: SynthesisOptions
    strategy: PrecisionStrategy
    config: Mapping[str, Any]
    outline: ModelOutline
    compute_dtype: str
    plan: SyntheticPlan

    def strategy_of(self, kind: UnitKind) -> PrecisionStrategy:
        """Return how units of a kind are stored."""
        return _strategy_of(kind, self.strategy, self.options)

    @property
    def fingerprint(self) -> str:
        """What must be the same for a run to go on where another stopped."""
        distinct = self.options.distinct_bytes
        config = json.dumps(self.config, sort_keys=True, default=str)
        strategies = [self.strategy_of(kind).name for kind in UnitKind]
        identity = [MANIFEST_SCHEMA, _METHOD, config, strategies, self.compute_dtype, distinct]
        return digest_of(json.dumps(identity).encode())


def synthesise(config: Mapping[str, Any], strategy: PrecisionStrategy, options: SynthesisOptions) -> ModelManifest:
    """Write the package `options.name` of the shape `config`, its matrices stored by `strategy`; return its manifest.

    Resumes, and appears under its name, as a conversion does.

    Raises:
        RequestError: the shape has no variant of that size, or the distinct bytes are too few.
        UnsupportedArchitecture: the shape is of an architecture that cannot run.
        Conflict, NotAllowed, DiskFull: as `convert`.
    """
    check_name(options.name)
    compute_dtype = resolve_compute_dtype(options.compute_dtype, strategy.name)
    with mapping_disk_errors(options.store), open_workspace(options.store, options.name) as workspace:
        job = _job(config, strategy, options, compute_dtype)
        with discarding_on_error(workspace):
            return _write_package(job, workspace)


def _job(config: Mapping[str, Any], strategy: PrecisionStrategy, options: SynthesisOptions, compute_dtype: str) -> _Job:
    wanted: Mapping[str, Any] = {**config, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": None}
    outline = build_outline(build_config(wanted), compute_dtype)
    if options.num_parameters is not None:
        wanted = scaled_config(_with_defaults(wanted, outline), _sizes(outline), options.num_parameters)
        outline = build_outline(build_config(wanted), compute_dtype)
    encoders = {kind: ParameterEncoder(_strategy_of(kind, strategy, options)) for kind in UnitKind}
    return _Job(
        options=options,
        strategy=strategy,
        config=wanted,
        outline=outline,
        compute_dtype=compute_dtype,
        plan=plan_synthetic(
            plan_files(outline), lambda kind, one: encoders[kind].stored_bytes(one), options.distinct_bytes
        ),
    )


def _strategy_of(kind: UnitKind, strategy: PrecisionStrategy, options: SynthesisOptions) -> PrecisionStrategy:
    return options.ends or strategy if kind in (UnitKind.EMBEDDING, UnitKind.HEAD) else strategy


def _with_defaults(config: Mapping[str, Any], outline: ModelOutline) -> Mapping[str, Any]:
    """Add what scaling reads and the file leaves to the class's defaults."""
    defaults = outline.model.config.to_dict()
    if "num_hidden_layers" not in defaults:
        raise RequestError(f"{outline.model.config.model_type} cannot be scaled: it has no num_hidden_layers")
    return {**{key: defaults[key] for key in SCALING_KEYS if defaults.get(key) is not None}, **config}


def _sizes(outline: ModelOutline) -> ShapeSizes:
    files = plan_files(outline)
    layers = [file for file in files if file.layer is not None]
    return ShapeSizes(
        outside_layers=sum(_elements(file, routed=False) for file in files if file.layer is None),
        dense_of_layer=tuple(_elements(file, routed=False) for file in layers),
        expert_of_layer=tuple(_elements(file, routed=True) for file in layers),
    )


def _elements(file: UnitFile, *, routed: bool) -> int:
    return sum(prod(parameter.shape) for parameter in (file.routed if routed else file.dense))


def _write_package(job: _Job, workspace: Workspace) -> ModelManifest:
    done = intact(workspace, workspace.completed(job.fingerprint))
    vocab_size = job.outline.model.config.get_text_config().vocab_size
    companions = write_companions(
        lambda directory: write_byte_tokenizer(directory, vocab_size), job.config, workspace.directory
    )
    contents = _write_files(job, workspace, done)
    manifest = replace(
        describe(job.outline, job.plan, contents, like=job.options.like),
        name=job.options.name,
        compute_dtype=job.compute_dtype,
        precision=job.strategy.name,
        eos_token_ids=(EOS_ID,),
        config_digest=companions["config.json"],
        tokenizer_digest=companions["tokenizer.json"],
    )
    write_manifest(workspace.directory, manifest)
    read_manifest(workspace.directory)
    workspace.publish()
    return manifest


def _write_files(job: _Job, workspace: Workspace, done: Mapping[str, tuple[UnitSpec, ...]]) -> dict[Content, UnitSpec]:
    """Write the files that are not there yet and return the unit of each content."""
    plan, options = job.plan, job.options
    sizes = {file.name: _room(file) for file in plan.files}
    lay_out(workspace.directory, sizes, measured_disks(options.store, options.disks))
    check_room(workspace.directory, {name: size for name, size in sizes.items() if name not in done})
    meter = ProgressMeter("write", plan.distinct_bytes, report=options.report, clock=options.clock)
    # Two runs of one wish make the same package, and two wishes different ones.
    seed = zlib.crc32(job.fingerprint.encode())
    random = {kind: RandomContent(ParameterEncoder(job.strategy_of(kind)), seed) for kind in UnitKind}
    found: dict[Content, UnitSpec] = {}
    for file in plan.files:
        units = done.get(file.name, ())
        if units:
            meter.credit(file.stored_bytes)
        else:
            units = _write_file(job, workspace, file, random, meter)
        found.update({content: unit for (_, content), unit in zip(file.contents, units, strict=True)})
    return found


def _write_file(
    job: _Job, workspace: Workspace, file: ContentFile, random: Mapping[UnitKind, RandomContent], meter: ProgressMeter
) -> tuple[UnitSpec, ...]:
    units: list[UnitSpec] = []
    with UnitFileWriter(workspace.directory, file.name, header_room_bytes(_keys(file))) as writer:
        for slot, (_, number) in file.contents:
            for part in random[slot.kind].parts(slot.parameters, number):
                writer.add(part, slot.expert)
            unit = writer.end_unit(slot.id, slot.kind, layer=slot.layer, expert=slot.expert)
            precision = job.strategy_of(slot.kind).name
            units.append(replace(unit, precision=precision, num_parameters=slot.num_parameters))
            meter.advance(slot.stored_bytes)
    workspace.record(file.name, units)
    return tuple(units)


def _keys(file: ContentFile) -> list[str]:
    return [f"{parameter.name}[00000]" for slot, _ in file.contents for parameter in slot.parameters]


def _room(file: ContentFile) -> int:
    """Return an upper bound of a file's size: contents, alignment and header."""
    num_parameters = sum(len(slot.parameters) for slot, _ in file.contents)
    padding = 4 * TENSOR_ALIGNMENT_BYTES * num_parameters + ALIGNMENT_BYTES * len(file.contents)
    return file.stored_bytes + padding + header_room_bytes(_keys(file))
