from teengined.kvcache.prefix import PrefixIndex, chained_digest
from teengined.kvcache.spool import Stored

SALT = b"salt"


def same_digest(parent: bytes, content: bytes) -> bytes:
    return b"same"


def insert(index: PrefixIndex, parent: int | bytes, token_ids: tuple[int, ...], block_id: int) -> int:
    return index.insert(parent, b"same", token_ids, block_id)[0].serial


def test_digest_covers_tokens_all_before_them_and_the_salt():
    index = PrefixIndex()
    digests = {
        index.digest(index.root(salt), token_ids)
        for salt in (b"", b"a", b"b")
        for token_ids in ((1, 2), (2, 1), (1, 3))
    }
    nested = index.digest(index.digest(index.root(b""), (1, 2)), (1, 2))

    assert len(digests | {nested}) == 10


def test_salt_that_looks_like_a_block_gives_another_digest():
    root = chained_digest(b"", SALT)

    assert chained_digest(b"", root + b"content") != chained_digest(root, b"content")


def test_digests_are_the_same_in_every_process():
    assert chained_digest(b"", SALT).hex() == "b1476e86c0f7b053c8b4fcd9afd432a5"


def test_block_is_found_by_its_tokens_and_its_parent():
    index = PrefixIndex()
    digest = index.digest(index.root(SALT), (1, 2))
    node, replaced = index.insert(SALT, digest, (1, 2), 7)

    assert replaced is None
    assert index.find(SALT, digest, (1, 2)) is node is index.at(7) is index.of(node.serial)
    assert node.block_id == 7


def test_collision_is_no_hit():
    index = PrefixIndex(same_digest)
    serial = insert(index, SALT, (1, 2), 7)

    assert index.find(SALT, b"same", (1, 3)) is None
    assert index.find(b"other", b"same", (1, 2)) is None
    assert index.find(serial, b"same", (1, 2)) is None
    assert index.find(SALT, b"same", (1, 2)) is index.of(serial)


def test_other_content_of_the_same_digest_takes_over_and_names_the_block_that_lost():
    index = PrefixIndex(same_digest)
    loser, _ = index.insert(SALT, b"same", (1, 2), 7)

    node, replaced = index.insert(SALT, b"same", (3, 4), 8)

    assert replaced is loser
    assert index.find(SALT, b"same", (3, 4)) is node
    index.leave(7)  # Of no consequence any more.
    index.forget(loser)
    assert len(index) == 1


def test_child_of_a_parent_that_is_gone_is_found_by_nobody():
    index = PrefixIndex()
    first = index.digest(index.root(SALT), (1, 2))
    second = index.digest(first, (3, 4))
    old, _ = index.insert(SALT, first, (1, 2), 7)
    index.insert(old.serial, second, (3, 4), 8)

    index.leave(7)
    new, _ = index.insert(SALT, first, (1, 2), 9)

    assert index.find(new.serial, second, (3, 4)) is None


def test_node_that_leaves_its_block_is_known_as_long_as_it_is_stored():
    index = PrefixIndex()
    node, _ = index.insert(SALT, b"digest", (1, 2), 7)
    node.stored = Stored(host=0)

    index.leave(7)

    assert (index.find(SALT, b"digest", (1, 2)), node.block_id, index.at(7)) == (node, None, None)
    index.place(node, 3)
    assert index.at(3) is node
    node.stored = None
    index.leave(3)
    assert index.find(SALT, b"digest", (1, 2)) is None
    assert index.of(node.serial) is None


def test_index_without_blocks_knows_only_what_is_stored_and_gives_no_serial_again():
    index = PrefixIndex()
    old, _ = index.insert(SALT, b"digest", (1,), 7)

    kept, _ = index.insert(SALT, b"other", (2,), 8)
    kept.stored = Stored(disk=0)

    index.leave_all()

    assert index.find(SALT, b"digest", (1,)) is None
    assert index.find(SALT, b"other", (2,)) is kept
    assert index.insert(SALT, b"digest", (1,), 7)[0].serial != old.serial
