"""Which block holds which prefix: chained digests of full blocks, checked token by token on every hit.

The digest of a block covers its tokens and, through its parent's digest, all tokens before them and the salt. It only
finds an entry. What makes a hit is that the entry's own tokens and its parent are the wanted ones, so that not even a
collision gives a sequence another's keys and values.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from teengined.kvcache.spool import Stored

__all__ = ["Node", "PrefixIndex", "chained_digest"]

_DIGEST_BYTES = 16


def chained_digest(parent: bytes, content: bytes) -> bytes:
    """Return the digest of a block whose parent's digest is given; of a salt with no parent, where a chain begins."""
    # The parent has a fixed length or none, so that no two pairs give the same bytes.
    person = b"block" if parent else b"salt"
    return hashlib.blake2b(parent + content, digest_size=_DIGEST_BYTES, person=person).digest()


@dataclass(slots=True, kw_only=True, eq=False)
class Node:
    """A full block of tokens after all those before it, and where its keys and values are."""

    serial: int
    parent: int | bytes
    token_ids: tuple[int, ...]
    digest: bytes
    block_id: int | None = None
    """None: not on the device."""
    stored: Stored | None = None
    """None: not below it. A node that is nowhere is forgotten."""


class PrefixIndex:
    """Finds where a full block of tokens is by what is in it and before it.

    A node's parent is the serial number of the node before it, or the salt for the first. Serial numbers are never
    used again, so that a node whose parent was evicted is found by nobody.
    """

    def __init__(self, digest: Callable[[bytes, bytes], bytes] = chained_digest) -> None:
        """`digest` makes a digest out of the parent's and the content."""
        self._digest = digest
        self._by_digest: dict[bytes, Node] = {}
        self._by_block: dict[int, Node] = {}
        self._by_serial: dict[int, Node] = {}
        self._next_serial = 0

    def __len__(self) -> int:
        return len(self._by_digest)

    def root(self, salt: bytes) -> bytes:
        """Return the digest that stands before the first block."""
        return self._digest(b"", salt)

    def digest(self, parent: bytes, token_ids: tuple[int, ...]) -> bytes:
        """Return the digest of a block after the block of digest `parent`."""
        return self._digest(parent, struct.pack(f"<{len(token_ids)}q", *token_ids))

    def find(self, parent: int | bytes, digest: bytes, token_ids: tuple[int, ...]) -> Node | None:
        """Return the node of exactly these tokens after exactly this parent, if it is known."""
        node = self._by_digest.get(digest)
        return None if node is None or node.parent != parent or node.token_ids != token_ids else node

    def insert(
        self, parent: int | bytes, digest: bytes, token_ids: tuple[int, ...], block_id: int | None
    ) -> tuple[Node, Node | None]:
        """Make a block known; return its node, and the node that lost its place by that, if any did.

        Where the digest stands for other content (a collision, or a parent that is gone), the new content takes over.
        """
        replaced = self._by_digest.get(digest)
        if replaced is not None:
            self.forget(replaced)
        node = Node(serial=self._next_serial, parent=parent, token_ids=token_ids, digest=digest)
        self._next_serial += 1
        self._by_digest[digest] = self._by_serial[node.serial] = node
        if block_id is not None:
            self.place(node, block_id)
        return node, replaced

    def place(self, node: Node, block_id: int) -> None:
        """Note that a node is on the device, in this block."""
        node.block_id = block_id
        self._by_block[block_id] = node

    def at(self, block_id: int) -> Node | None:
        """Return the node in a block."""
        return self._by_block.get(block_id)

    def nodes(self) -> Iterable[Node]:
        """Return all nodes, each after its parent."""
        return self._by_serial.values()

    def has(self, digest: bytes) -> bool:
        """Whether a digest stands for something."""
        return digest in self._by_digest

    def of(self, serial: int | None) -> Node | None:
        """Return the node of a serial number, if it is still known."""
        return None if serial is None else self._by_serial.get(serial)

    def leave(self, block_id: int) -> None:
        """Note that a block holds its node no more; a node that is nowhere else is forgotten."""
        node = self._by_block.pop(block_id, None)
        if node is not None:
            node.block_id = None
            if node.stored is None:
                self.forget(node)

    def forget(self, node: Node) -> None:
        """Let a node no longer be found, wherever it is."""
        if self._by_serial.pop(node.serial, None) is None:
            return
        del self._by_digest[node.digest]
        if node.block_id is not None:
            del self._by_block[node.block_id]

    def leave_all(self) -> None:
        """Note that no block holds anything any more; serial numbers go on."""
        for block_id in tuple(self._by_block):
            self.leave(block_id)
