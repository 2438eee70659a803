import dataclasses

import pytest

from teengined.core.errors import PackageCorrupt, PackageError
from teengined.weights.digests import DigestCheck, check_pieces
from tests.fakes.package_builder import build_package


@pytest.fixture
def unit_and_content(tmp_path):
    package = build_package(tmp_path, num_layers=1)
    unit = package.unit("layer.0")
    return unit, bytearray(package.path_of("layer.0").read_bytes()[unit.offset_bytes :][: unit.size_bytes])


def test_a_flipped_bit_is_told_with_the_units_name(unit_and_content):
    unit, content = unit_and_content
    content[100] ^= 1

    with pytest.raises(PackageCorrupt, match=r"layer\.0"):
        DigestCheck(enabled=True).check(unit, memoryview(content))


def test_a_unit_is_compared_once_only(unit_and_content):
    unit, content = unit_and_content
    check = DigestCheck(enabled=True)
    check.check(unit, memoryview(content))
    content[100] ^= 1

    check.check(unit, memoryview(content))

    assert not check.is_due(unit)


def test_nothing_is_compared_where_it_is_not_wanted(unit_and_content):
    unit, content = unit_and_content
    content[0] ^= 1

    DigestCheck(enabled=False).check(unit, memoryview(content))


def test_units_that_share_their_bytes_are_compared_once(unit_and_content):
    unit, content = unit_and_content
    check = DigestCheck(enabled=True)
    check.check(unit, memoryview(content))

    assert not check.is_due(dataclasses.replace(unit, id="layer.7", layer=7))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_unit_of_a_suspect_file_is_compared_again_once(unit_and_content, enabled):
    unit, content = unit_and_content
    check = DigestCheck(enabled=enabled)
    check.check(unit, memoryview(content))
    content[100] ^= 1

    check.suspect(unit.file)

    with pytest.raises(PackageCorrupt):
        check.check(unit, memoryview(content))
    content[100] ^= 1
    check.check(unit, memoryview(content))
    assert not check.is_due(unit)


def test_pieces_are_compared_as_the_whole(unit_and_content):
    unit, content = unit_and_content
    memory = memoryview(content)

    check_pieces(unit, (memory[:1000], memory[1000:]))


def test_a_digest_of_unknown_kind_is_refused(unit_and_content):
    unit, content = unit_and_content

    with pytest.raises(PackageError, match="crc32"):
        check_pieces(dataclasses.replace(unit, digest="crc32:00"), (memoryview(content),))
