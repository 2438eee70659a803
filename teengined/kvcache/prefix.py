"""Which block holds which prefix: chained digests of full blocks, checked token by token on every hit.

The digest of a block covers its tokens and, through its parent's digest, all tokens before them and the salt. It only
finds an entry. What makes a hit is that the entry's own tokens and its parent are the wanted ones, so that not even a
collision gives a sequence another's keys and values.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["PrefixIndex", "chained_digest"]

_DIGEST_BYTES = 16


def chained_digest(parent: bytes, content: bytes) -> bytes:
    """Return the digest of a block whose parent's digest is given; of a salt with no parent, where a chain begins."""
    # The parent has a fixed length or none, so that no two pairs give the same bytes.
    person = b"block" if parent else b"salt"
    return hashlib.blake2b(parent + content, digest_size=_DIGEST_BYTES, person=person).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    serial: int
    parent: int | bytes
    token_ids: tuple[int, ...]
    digest: bytes
    block_id: int


class PrefixIndex:
    """Finds the block of a full block of tokens by what is in it and before it.

    An entry's parent is the serial number of the entry before it, or the salt for the first. Serial numbers are never
    used again, so that an entry whose parent was evicted is found by nobody.
    """

    def __init__(self, digest: Callable[[bytes, bytes], bytes] = chained_digest) -> None:
        """`digest` makes a digest out of the parent's and the content."""
        self._digest = digest
        self._by_digest: dict[bytes, _Entry] = {}
        self._by_block: dict[int, _Entry] = {}
        self._next_serial = 0

    def __len__(self) -> int:
        return len(self._by_digest)

    def root(self, salt: bytes) -> bytes:
        """Return the digest that stands before the first block."""
        return self._digest(b"", salt)

    def digest(self, parent: bytes, token_ids: tuple[int, ...]) -> bytes:
        """Return the digest of a block after the block of digest `parent`."""
        return self._digest(parent, struct.pack(f"<{len(token_ids)}q", *token_ids))

    def find(self, parent: int | bytes, digest: bytes, token_ids: tuple[int, ...]) -> tuple[int, int] | None:
        """Return serial number and block of exactly these tokens after exactly this parent, if they are known."""
        entry = self._by_digest.get(digest)
        if entry is None or entry.parent != parent or entry.token_ids != token_ids:
            return None
        return entry.serial, entry.block_id

    def insert(
        self, parent: int | bytes, digest: bytes, token_ids: tuple[int, ...], block_id: int
    ) -> tuple[int, int | None]:
        """Make a block known; return its serial number, and the block that lost its place by that, if any did.

        Where the digest stands for other content (a collision, or a parent that is gone), the new content takes over.
        """
        replaced = self._by_digest.get(digest)
        if replaced is not None:
            del self._by_block[replaced.block_id]
        entry = _Entry(self._next_serial, parent, token_ids, digest, block_id)
        self._next_serial += 1
        self._by_digest[digest] = self._by_block[block_id] = entry
        return entry.serial, None if replaced is None else replaced.block_id

    def forget(self, block_id: int) -> None:
        """Let a block no longer be found."""
        entry = self._by_block.pop(block_id, None)
        if entry is not None:
            del self._by_digest[entry.digest]

    def clear(self) -> None:
        """Forget all blocks; serial numbers go on."""
        self._by_digest.clear()
        self._by_block.clear()
