import random
from typing import Any

import msgpack
import pytest

from teengined.core.records import to_mapping
from teengined.kvcache.kept import KeptBlock
from teengined.service import prefix_manifest
from teengined.service.prefix_manifest import ManifestRefused, PrefixManifest, decode_manifest, encode_manifest

KEY, OTHER_KEY = bytes(32), bytes([1]) * 32


def block(slot: int, parent: int = -1, **changed: Any) -> KeptBlock:
    values: dict[str, Any] = {"slot": slot, "parent": parent, "salt": b"" if parent >= 0 else b"salt"} | changed
    return KeptBlock(token_ids=(1, 2), digests=(b"d", b"e"), **values)


def manifest(*blocks: KeptBlock, **changed: Any) -> PrefixManifest:
    values: dict[str, Any] = {"fingerprint": "this", "block_tokens": 2, "num_stages": 2, "blocks": blocks}
    return PrefixManifest(**values | changed)


def test_what_is_written_is_read_again():
    written = manifest(block(0, written_unix_seconds=1.5), block(5, parent=0, rank=3))

    assert decode_manifest(encode_manifest(written, KEY), KEY, "this") == written


def test_every_altered_byte_is_noticed(seed: int):
    content = encode_manifest(manifest(block(0)), KEY)
    rng = random.Random(seed)
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= rng.randrange(1, 256)
        with pytest.raises(ManifestRefused, match="altered"):
            decode_manifest(bytes(altered), KEY, "this")


@pytest.mark.parametrize("length", [0, 5, 14, 15, 46, 47, 60])
def test_part_of_a_manifest_is_none(length: int):
    with pytest.raises(ManifestRefused):
        decode_manifest(encode_manifest(manifest(block(0)), KEY)[:length], KEY, "this")


def test_manifest_of_another_key_or_for_other_settings_is_none():
    content = encode_manifest(manifest(), KEY)

    with pytest.raises(ManifestRefused, match="not written by this daemon"):
        decode_manifest(content, OTHER_KEY, "this")
    with pytest.raises(ManifestRefused, match="others now"):
        decode_manifest(content, KEY, "that")


def signed(body: Any) -> bytes:
    packed = msgpack.packb(body)
    return prefix_manifest._HEADER + prefix_manifest._mac(packed, KEY) + packed


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"fingerprint": "this"},
        to_mapping(manifest(block(0))) | {"more": 1},
        to_mapping(manifest(block(0))) | {"block_tokens": 3},
        to_mapping(manifest(block(0))) | {"num_stages": 1},
        to_mapping(manifest(block(0))) | {"blocks": [to_mapping(block(0, parent=0))]},
        to_mapping(manifest(block(0))) | {"blocks": [to_mapping(block(0)) | {"slot": "0"}]},
        to_mapping(manifest(block(0))) | {"blocks": [to_mapping(block(0)) | {"token_ids": [1, -2]}]},
        to_mapping(manifest(block(0))) | {"blocks": [1] * 20_000},
    ],
)
def test_even_what_was_written_with_the_key_is_held_to_its_bounds(body: Any):
    with pytest.raises(ManifestRefused, match="does not hold"):
        decode_manifest(signed(body), KEY, "this")


def test_manifest_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_manifest, "MAX_MANIFEST_BYTES", 100)

    with pytest.raises(ManifestRefused, match="1 blocks take"):
        encode_manifest(manifest(block(0)), KEY)
