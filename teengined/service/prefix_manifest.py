"""What lies in a deployment's spool files, written down so that the next one can begin with it: bytes only, no files.

    teengine.kv/v1 ⏎ | 32 bytes that only this daemon's key gives | msgpack of a `PrefixManifest`

The file is not trusted. Whoever may write to the spool's disk could otherwise have one owner's text begin another's, so
nothing of it is read before the whole was found to be what was written with the key, and then within bounds.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

import msgpack

from teengined.core.records import RecordError, from_mapping, to_mapping
from teengined.kvcache.kept import MAX_KEPT_BLOCKS, NO_PARENT, KeptBlock

__all__ = [
    "MAX_MANIFEST_BYTES",
    "ManifestRefused",
    "PrefixManifest",
    "decode_manifest",
    "encode_manifest",
    "most_blocks",
]

MAX_MANIFEST_BYTES = 64 << 20
"""Of `MAX_KEPT_BLOCKS` blocks of 16 tokens some 5 MB; blocks of hundreds of tokens take more."""
_HEADER = b"teengine.kv/v1\n"
_MAC_BYTES = 32
# Of one block: the names of its fields, a salt and numbers, then of each token and of each digest. Of the rest: a page.
_BLOCK_BYTES, _TOKEN_BYTES, _DIGEST_BYTES, _REST_BYTES = 192, 5, 66, 4096
# Of one block: more than any device's plan has stages.
_MAX_DIGESTS = 1024


class ManifestRefused(Exception):
    """It is not what this daemon wrote, or not for these settings; its message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixManifest:
    """All that is kept of one deployment."""

    fingerprint: str
    """Of everything that the bytes depend on: the package, and how it was run."""
    block_tokens: int
    num_stages: int
    kernels: tuple[str, ...]
    """What each stage computed with, as it said itself when it was opened."""
    blocks: tuple[KeptBlock, ...]

    def __post_init__(self) -> None:
        """Refuse blocks that do not fit each other.

        Raises:
            ValueError: of another size, from another number of stages, or after a block that comes later.
        """
        if len(self.kernels) != self.num_stages:
            raise ValueError("it does not say what every stage computed with")
        if len(self.blocks) > MAX_KEPT_BLOCKS:
            raise ValueError(f"it has more than {MAX_KEPT_BLOCKS} blocks")
        for place, block in enumerate(self.blocks):
            if len(block.token_ids) != self.block_tokens or len(block.digests) != self.num_stages:
                raise ValueError(f"block {place} has another size than the rest")
            if block.parent != NO_PARENT and block.parent >= place:
                raise ValueError(f"block {place} comes before the one that it follows")


def most_blocks(max_bytes: int, slot_bytes: int, block_tokens: int, num_stages: int) -> int:
    """Return how many blocks of `slot_bytes` fit into `max_bytes` together with the manifest that tells of them."""
    told_bytes = _BLOCK_BYTES + block_tokens * _TOKEN_BYTES + num_stages * _DIGEST_BYTES
    num_fitting = max(0, max_bytes - 2 * _REST_BYTES) // (slot_bytes + told_bytes)  # One of them for its last page.
    return min(MAX_KEPT_BLOCKS, num_fitting, (MAX_MANIFEST_BYTES // 2 - _REST_BYTES) // told_bytes)


def encode_manifest(manifest: PrefixManifest, key: bytes) -> bytes:
    """Return the content of a manifest's file.

    Raises:
        ManifestRefused: it is larger than anybody would read.
    """
    body = msgpack.packb(to_mapping(manifest))
    if len(body) > MAX_MANIFEST_BYTES // 2:
        raise ManifestRefused(f"its {len(manifest.blocks)} blocks take {len(body)} bytes")
    return _HEADER + _mac(body, key) + body


def decode_manifest(content: bytes, key: bytes, fingerprint: str) -> PrefixManifest:
    """Return what was written.

    Raises:
        ManifestRefused: it was altered, written with another key or by another version, or has another fingerprint.
    """
    start = len(_HEADER) + _MAC_BYTES
    mac, body = content[len(_HEADER) : start], content[start:]
    if not content.startswith(_HEADER) or not hmac.compare_digest(mac, _mac(body, key)):
        raise ManifestRefused("it was altered, or not written by this daemon")
    try:
        manifest = from_mapping(PrefixManifest, _unpack(body))
    except (RecordError, ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ManifestRefused(f"it does not hold: {error!s:.200}") from error
    if manifest.fingerprint != fingerprint:
        raise ManifestRefused("the package or its settings are others now")
    return manifest


def _unpack(body: bytes) -> Any:
    most = max(MAX_KEPT_BLOCKS, _MAX_DIGESTS)
    return msgpack.unpackb(body, strict_map_key=True, max_array_len=most, max_map_len=16, max_ext_len=0)


def _mac(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=_MAC_BYTES, person=b"kv manifest").digest()
