"""Calls about the packages in the store. The disk is read in threads."""

import asyncio
import hashlib
import logging

from teengined.core.errors import Conflict, PackageError
from teengined.core.model import ModelManifest
from teengined.modelpack.store import PackageStore
from teengined.protocol import messages as wire
from teengined.service.context import ServiceContext
from teengined.service.server import Call

logger = logging.getLogger(__name__)

__all__ = ["list_models", "remove_model", "show_model"]

_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


async def list_models(context: ServiceContext, _call: Call, message: wire.ListModels) -> wire.ModelList:
    """List packages by name; a damaged one is left out (`show` tells what is wrong with it)."""
    return await asyncio.to_thread(_list, context.store, message.prefix)


async def show_model(context: ServiceContext, _call: Call, message: wire.ShowModel) -> wire.ModelDetail:
    """Tell everything about a package but its unit table."""
    return await asyncio.to_thread(_detail, context.store, message.model)


async def remove_model(context: ServiceContext, _call: Call, message: wire.RemoveModel) -> wire.Done:
    """Delete a package that no deployment uses."""
    if context.deployments.uses_package(message.model):
        raise Conflict(f"{message.model} is loaded", hint=f"`teengine unload {message.model}` first")
    await asyncio.to_thread(context.store.remove, message.model)
    await asyncio.to_thread(context.deployments.kept.forget, message.model)
    return wire.Done()


def _list(store: PackageStore, prefix: str) -> wire.ModelList:
    summaries: list[wire.ModelSummary] = []
    for name in store.names():
        if name.startswith(prefix):
            try:
                summaries.append(_summary(store, name, store.manifest(name)))
            except PackageError as error:
                logger.warning("left out of the list: %s", error.message)
    return wire.ModelList(models=tuple(summaries))


def _summary(store: PackageStore, name: str, manifest: ModelManifest) -> wire.ModelSummary:
    content = (store.path_of(name) / "manifest.json").read_bytes()
    return wire.ModelSummary(
        name=name,
        digest=f"blake2b:{hashlib.blake2b(content, digest_size=32).hexdigest()}",
        size_bytes=store.size_bytes(name),
        architecture=manifest.architecture,
        precision=manifest.precision,
        num_parameters=manifest.num_parameters,
        modified_unix_seconds=store.modified_seconds(name),
    )


def _detail(store: PackageStore, name: str) -> wire.ModelDetail:
    manifest = store.manifest(name)
    return wire.ModelDetail(
        summary=_summary(store, name, manifest),
        source=manifest.source,
        num_layers=manifest.num_layers,
        hidden_size=manifest.hidden_size,
        vocab_size=manifest.vocab_size,
        max_context_tokens=manifest.max_context_tokens,
        num_experts=manifest.num_experts,
        num_units=len(manifest.units),
        compute_dtype=manifest.compute_dtype,
        kv_bytes_per_token=sum(manifest.kv_elements_per_token) * _DTYPE_BYTES.get(manifest.compute_dtype, 4),
        numeric_notes=manifest.numeric_notes,
    )
