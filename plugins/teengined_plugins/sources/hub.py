"""Checkpoints on the Hugging Face hub, by id. Needs the optional extra `hub`; weights come as safetensors only."""

import importlib.util
import os
import re
from pathlib import Path
from typing import ClassVar

from teengined.core.errors import HubUnreachable, SourceError
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.source import Checkpoint, ModelSource
from teengined_plugins.sources.hf_directory import DirectoryCheckpoint

__all__ = ["Hub", "teengine_register_sources"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[A-Za-z0-9._/-]{1,64})?")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "spiece.model", "vocab.txt", "merges.txt"]
_OFFLINE_WAYS = "offline, name a directory with config.json and .safetensors files, a .gguf file, or the alias smollm2"
# The hub's own client retries; this bounds one request for metadata (a busy hub answers in a second or two).
_TIMEOUT_SECONDS = 10.0


class Hub(ModelSource):
    """Downloads `ORG/NAME` (or `ORG/NAME@REVISION`) into the hub client's own cache, and opens it there."""

    name: ClassVar[str] = "hub"

    def matches(self, reference: str) -> bool:
        """Say yes to `ORG/NAME` that is no path here."""
        return bool(_ID.fullmatch(reference)) and not Path(reference).exists()

    def open(self, reference: str) -> Checkpoint:
        """Download what is missing and open it.

        Raises:
            HubUnreachable: the hub does not answer and nothing is cached.
            SourceError: the extra is not installed, or the hub has no such model or will not give it.
        """
        if importlib.util.find_spec("huggingface_hub") is None:
            raise SourceError(
                f"{reference} is nothing here, so it is taken for a hub id, and the hub's client is not installed",
                hint=f"pip install 'teengine[hub]'; {_OFFLINE_WAYS}",
            )
        model, _, revision = reference.partition("@")
        return DirectoryCheckpoint(_snapshot(model, revision or None), reference)


def _snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = snapshot_download(model, revision=revision, allow_patterns=_WANTED, etag_timeout=_TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise SourceError(
            f"{model} is gated: its owner must let you in first",
            hint="accept its terms on the hub, then `hf auth login`",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at {revision}" if revision else ""
        raise SourceError(
            f"the hub has no model {model}{at}, or shows it only to those who may see it",
            hint="check the name on the hub; for a private one, `hf auth login`",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise HubUnreachable(
            f"{model} is nothing here, and the Hugging Face hub does not answer, so it cannot be fetched",
            hint=_OFFLINE_WAYS,
        ) from error
    return Path(os.fspath(path))


@hookimpl
def teengine_register_sources() -> list[type[ModelSource]]:
    """Register the source."""
    return [Hub]
