from teengined.kvcache.prefix import PrefixIndex, chained_digest

SALT = b"salt"


def same_digest(parent: bytes, content: bytes) -> bytes:
    return b"same"


def insert(index: PrefixIndex, parent: int | bytes, token_ids: tuple[int, ...], block_id: int) -> int:
    return index.insert(parent, b"same", token_ids, block_id)[0]


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
    serial, replaced = index.insert(SALT, digest, (1, 2), 7)

    assert replaced is None
    assert index.find(SALT, digest, (1, 2)) == (serial, 7)


def test_collision_is_no_hit():
    index = PrefixIndex(same_digest)
    serial = insert(index, SALT, (1, 2), 7)

    assert index.find(SALT, b"same", (1, 3)) is None
    assert index.find(b"other", b"same", (1, 2)) is None
    assert index.find(serial, b"same", (1, 2)) is None
    assert index.find(SALT, b"same", (1, 2)) == (serial, 7)


def test_other_content_of_the_same_digest_takes_over_and_names_the_block_that_lost():
    index = PrefixIndex(same_digest)
    insert(index, SALT, (1, 2), 7)

    serial, replaced = index.insert(SALT, b"same", (3, 4), 8)

    assert replaced == 7
    assert index.find(SALT, b"same", (3, 4)) == (serial, 8)
    index.forget(7)  # Of no consequence any more.
    assert len(index) == 1


def test_child_of_a_parent_that_is_gone_is_found_by_nobody():
    index = PrefixIndex()
    first = index.digest(index.root(SALT), (1, 2))
    second = index.digest(first, (3, 4))
    old, _ = index.insert(SALT, first, (1, 2), 7)
    index.insert(old, second, (3, 4), 8)

    index.forget(7)
    new, _ = index.insert(SALT, first, (1, 2), 9)

    assert index.find(new, second, (3, 4)) is None


def test_cleared_index_knows_nothing_and_gives_no_serial_again():
    index = PrefixIndex()
    old, _ = index.insert(SALT, b"digest", (1,), 7)

    index.clear()

    assert index.find(SALT, b"digest", (1,)) is None
    assert index.insert(SALT, b"digest", (1,), 7)[0] != old
