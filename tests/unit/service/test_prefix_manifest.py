import random
from typing import Any

import msgpack
import pytest

from teengined.core.records import to_mapping
from teengined.kvcache.kept import KeptBlock
from teengined.service import prefix_manifest
from teengined.service.prefix_manifest import (
    ManifestRefused,
    PrefixManifest,
    decode_manifest,
    encode_manifest,
    most_blocks,
)

KEY, OTHER_KEY = bytes(32), bytes([1]) * 32


def block(slot: int, parent: int = -1, **changed: Any) -> KeptBlock:
    values: dict[str, Any] = {"slot": slot, "parent": parent, "salt": b"" if parent >= 0 else b"salt"} | changed
    return KeptBlock(token_ids=(1, 2), digests=(b"d", b"e"), **values)


def manifest(*blocks: KeptBlock, **changed: Any) -> PrefixManifest:
    values: dict[str, Any] = {"fingerprint": "this", "block_tokens": 2, "num_stages": 2, "kernels": ("a", "b")}
    values |= {"blocks": blocks} | changed
    return PrefixManifest(**values)


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
        to_mapping(manifest(block(0))) | {"kernels": ["a"]},
        to_mapping(manifest(block(0))) | {"blocks": [to_mapping(block(0, parent=0))]},
        to_mapping(manifest(block(0))) | {"blocks": [to_mapping(block(0)) | {"slot": "0"}]},
        to_mapping(manifest(block(0))) | {"blocks": [to_mapping(block(0)) | {"token_ids": [1, -2]}]},
        to_mapping(manifest(block(0))) | {"blocks": [1] * 20_000},
    ],
)
def test_even_what_was_written_with_the_key_is_held_to_its_bounds(body: Any):
    with pytest.raises(ManifestRefused, match="does not hold"):
        decode_manifest(signed(body), KEY, "this")


@pytest.mark.parametrize(("block_tokens", "num_stages"), [(16, 1), (1, 1), (16, 8), (512, 2)])
def test_slots_and_manifest_of_the_most_blocks_fit(block_tokens: int, num_stages: int, monkeypatch: pytest.MonkeyPatch):
    for room, most_bytes in ((1 << 20, 64 << 20), (1 << 40, 1 << 20)):
        monkeypatch.setattr(prefix_manifest, "MAX_MANIFEST_BYTES", most_bytes)
        num_blocks = most_blocks(room, 4096, block_tokens, num_stages)
        large = KeptBlock(
            slot=(1 << 31) - 1,
            salt=bytes(64),
            token_ids=((1 << 31) - 1,) * block_tokens,
            digests=(bytes(64),) * num_stages,
            rank=(1 << 31) - 1,
            written_unix_seconds=1e9,
        )
        kernels = ("kernels-" + "f" * 32,) * num_stages
        content = encode_manifest(
            PrefixManifest(
                fingerprint="f" * 64,
                block_tokens=block_tokens,
                num_stages=num_stages,
                kernels=kernels,
                blocks=(large,) * num_blocks,
            ),
            KEY,
        )

        assert num_blocks > 0
        assert num_blocks * 4096 + -(-len(content) // 4096) * 4096 <= room


def test_where_nothing_fits_nothing_is_kept():
    assert most_blocks(0, 4096, 16, 1) == most_blocks(8192, 4096, 16, 1) == 0


def test_manifest_that_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix_manifest, "MAX_MANIFEST_BYTES", 100)

    with pytest.raises(ManifestRefused, match="1 blocks take"):
        encode_manifest(manifest(block(0)), KEY)
