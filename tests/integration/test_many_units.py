"""The books of a model of a trillion parameters: 22,500 units in manifest, plan and messages, without their bytes."""

from dataclasses import replace
from pathlib import Path

import pytest

from teengined.core.device import MEASURED_TOKENS, ComputePoint, DeviceProfile, DeviceSpec, HostProfile
from teengined.core.model import ModelManifest, TensorSpec, UnitSpec
from teengined.core.plan import Plan
from teengined.interfaces.registry import PluginRegistry
from teengined.modelpack.assembly import plan_files
from teengined.modelpack.layout import align_up
from teengined.modelpack.manifest import MAX_MANIFEST_BYTES, read_manifest, write_manifest
from teengined.modelpack.outline import ModelOutline, build_config, build_outline
from teengined.modelpack.shapes import config_like
from teengined.modelpack.store import PackageStore
from teengined.modelpack.synthetic_manifest import describe
from teengined.modelpack.synthetic_plan import Slot, plan_synthetic
from teengined.placement.inputs import PlanningInput
from teengined.placement.planner import plan
from teengined.protocol.codec import CodecLimits, Envelope, decode, encode
from teengined.protocol.messages import CLIENT_MESSAGES, PlanReply
from teengined.protocol.worker_messages import WORKER_LIMITS, WORKER_MESSAGES, OpenStage
from teengined.service.settings import ProtocolSettings

GB = 10**9


@pytest.fixture(scope="module")
def outline() -> ModelOutline:
    return build_outline(build_config(config_like("kimi-k2")), "bf16")


@pytest.fixture(scope="module")
def package(outline: ModelOutline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the right shape in half a byte a parameter, whose files are holes."""
    directory = tmp_path_factory.mktemp("store") / "big"
    (directory / "units").mkdir(parents=True)
    made = plan_synthetic(plan_files(outline), lambda _kind, one: -(-_elements(one.shape) // 2), 30 * GB)
    contents = {}
    for file in made.files:
        offset = 4096
        for slot, content in file.contents:
            contents[content] = _unit(slot, f"units/{file.name}", offset)
            offset += contents[content].size_bytes
        with (directory / "units" / file.name).open("wb") as hole:
            hole.truncate(offset)
    digest = f"blake2b:{0:064}"
    manifest = replace(
        describe(outline, made, contents, like="kimi-k2"),
        name="big",
        compute_dtype="bf16",
        precision="bf16",
        config_digest=digest,
        tokenizer_digest=digest,
    )
    write_manifest(directory, manifest)
    return directory


@pytest.fixture(scope="module")
def manifest(package: Path) -> ModelManifest:
    return read_manifest(package)


@pytest.fixture(scope="module")
def planned(manifest: ModelManifest) -> Plan:
    devices = tuple(DeviceSpec(id=f"cpu:{index}", driver="cpu", memory_bytes=60 * GB, threads=1) for index in range(2))
    planning = PlanningInput(
        manifest=manifest,
        devices=devices,
        profiles={spec.id: _profile(spec.id) for spec in devices},
        host=HostProfile(
            host="here", disk_read_bytes_per_second=1e9, memory_read_bytes_per_second=2e10, memory_bytes=0
        ),
        context_tokens=512,
    )
    return plan(planning, PluginRegistry.load().placement_policy("optimal"))


def test_the_manifest_is_far_below_its_limit_and_experts_share_their_tables(
    package: Path, manifest: ModelManifest
) -> None:
    assert len(manifest.units) == 2 + 61 + 60 * 384
    assert (package / "manifest.json").stat().st_size < MAX_MANIFEST_BYTES / 10
    assert len({id(unit.tensors) for unit in manifest.units}) <= 2 + 61 + 60
    assert 500 * GB < manifest.size_bytes < 520 * GB
    assert 29 * GB < manifest.stored_bytes <= 30 * GB


def test_a_store_reads_it_once_while_it_stays_the_same(package: Path) -> None:
    store = PackageStore(package.parent)

    first = store.manifest("big")

    assert store.manifest("big") is first
    (package / "manifest.json").touch()
    again = store.manifest("big")
    assert again is not first
    assert again == first


def test_its_plan_fits_into_a_reply_and_comes_back_as_it_was(manifest: ModelManifest, planned: Plan) -> None:
    settings = ProtocolSettings()
    limits = CodecLimits(max_message_bytes=settings.max_reply_bytes, max_items=settings.max_items)
    reply = PlanReply(
        plan=planned,
        model_bytes=manifest.size_bytes,
        precision=manifest.precision,
        devices=(),
        host_profile=HostProfile(
            host="here", disk_read_bytes_per_second=1e9, memory_read_bytes_per_second=2e10, memory_bytes=0
        ),
    )

    frames = encode(Envelope(correlation=1, message=reply), CLIENT_MESSAGES, limits)

    assert len(frames[1]) < settings.max_reply_bytes / 4
    assert decode(frames, CLIENT_MESSAGES, limits).message == reply


def test_its_largest_stage_fits_into_an_order(planned: Plan) -> None:
    order = OpenStage(
        deployment_id="d1",
        package_dir="/srv/models/big",
        stage=planned.stages[0],
        num_stages=len(planned.stages),
        context_tokens=512,
        num_slots=1,
        listen_address="",
        listen_transport="",
        connect_address="",
        connect_transport="",
        max_step_tokens=512,
        verify=True,
        timeout_seconds=60.0,
        read_threads=4,
        read_chunk_bytes=4 << 20,
        ring_slots=3,
        direct_io=True,
        num_blocks=32,
        block_tokens=16,
    )

    frames = encode(Envelope(correlation=0, message=order), WORKER_MESSAGES, WORKER_LIMITS)

    assert decode(frames, WORKER_MESSAGES, WORKER_LIMITS).message == order


def _profile(device_id: str) -> DeviceProfile:
    return DeviceProfile(
        device_id=device_id,
        compute_dtype="bf16",
        compute=tuple(
            ComputePoint(precision="bf16", num_tokens=count, seconds_per_parameter=5e-11) for count in MEASURED_TOKENS
        ),
        layer_overhead_seconds=1e-4,
        host_to_device_bytes_per_second=None,
    )


def _unit(slot: Slot, file: str, offset_bytes: int) -> UnitSpec:
    tensors: list[TensorSpec] = []
    end = 0
    for parameter in slot.parameters:
        size = -(-_elements(parameter.shape) // 2)
        tensors.append(
            TensorSpec(
                parameter=parameter.name,
                part="data",
                dtype="U8",
                shape=(size,),
                offset_bytes=align_up(end, 64),
                size_bytes=size,
            )
        )
        end = tensors[-1].offset_bytes + size
    return UnitSpec(
        id=slot.id,
        kind=slot.kind,
        layer=slot.layer,
        expert=slot.expert,
        precision="bf16",
        file=file,
        offset_bytes=offset_bytes,
        size_bytes=align_up(end),
        num_parameters=slot.num_parameters,
        digest=f"blake2b:{0:064}",
        tensors=tuple(tensors),
    )


def _elements(shape: tuple[int, ...]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number
