"""Unit files on several disks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teengined.core.errors import NotAllowed
from teengined.modelpack.spread import MARK, Disk, assign_files, file_status, lay_out, remove_tree, spread_target


def package_in(store: Path) -> Path:
    directory = store / ".converting-big"
    (directory / "units").mkdir(parents=True)
    return directory


def two_disks(tmp_path: Path) -> tuple[Disk, Disk]:
    own, other = tmp_path / "store", tmp_path / "other"
    return Disk(path=own, bytes_per_second=1e9), Disk(path=other, bytes_per_second=1e9)


def write_all(directory: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        (directory / "units" / name).write_bytes(bytes(size))


SIZES = {f"layer-{index}.safetensors": 100 for index in range(6)}


def test_files_of_one_size_alternate_between_disks_of_one_speed() -> None:
    assert assign_files([10] * 6, [5.0, 5.0]) == (0, 1, 0, 1, 0, 1)


def test_a_faster_disk_gets_more() -> None:
    chosen = assign_files([10] * 40, [3e9, 1e9])

    assert chosen.count(0) == 30


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=80), st.lists(st.floats(1e6, 1e10), min_size=1, max_size=4))
def test_no_disk_is_busy_for_longer_than_the_others_by_more_than_one_file(sizes: list[int], rates: list[float]) -> None:
    busy = [0.0] * len(rates)
    for size, disk in zip(sizes, assign_files(sizes, rates), strict=True):
        busy[disk] += size / rates[disk]

    slowest = max(busy)
    assert all(slowest <= (seconds + max(sizes) / rate) * (1 + 1e-9) for seconds, rate in zip(busy, rates, strict=True))


def test_files_of_other_disks_are_links_that_read_as_files(tmp_path: Path) -> None:
    directory = package_in(tmp_path / "store")
    lay_out(directory, SIZES, two_disks(tmp_path))
    write_all(directory, SIZES)

    links = [path for path in sorted((directory / "units").iterdir()) if path.is_symlink()]
    assert [path.name for path in links] == ["layer-1.safetensors", "layer-3.safetensors", "layer-5.safetensors"]
    for link in links:
        target = spread_target(link)
        assert target is not None
        assert target.is_relative_to(tmp_path / "other")
        status = file_status(link)
        assert status is not None
        assert status.st_size == 100


def test_what_is_laid_out_already_stays_where_it_is(tmp_path: Path) -> None:
    directory = package_in(tmp_path / "store")
    lay_out(directory, SIZES, two_disks(tmp_path))
    before = {path.name: path.readlink() for path in (directory / "units").iterdir()}

    lay_out(directory, SIZES, two_disks(tmp_path))

    assert {path.name: path.readlink() for path in (directory / "units").iterdir()} == before


def test_removing_the_package_removes_what_it_has_elsewhere_and_nothing_else(tmp_path: Path) -> None:
    directory = package_in(tmp_path / "store")
    lay_out(directory, SIZES, two_disks(tmp_path))
    write_all(directory, SIZES)
    (tmp_path / "other" / "precious").mkdir()
    precious = tmp_path / "precious.safetensors"
    precious.write_text("mine")
    (directory / "units" / "precious.safetensors").symlink_to(precious)

    remove_tree(directory)

    assert not directory.exists()
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [MARK, "precious"]
    assert precious.read_text() == "mine"


def test_one_disk_needs_no_links(tmp_path: Path) -> None:
    directory = package_in(tmp_path / "store")

    lay_out(directory, SIZES, two_disks(tmp_path)[:1])
    lay_out(directory, SIZES, ())

    assert list((directory / "units").iterdir()) == []


def test_a_disk_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    directory = package_in(tmp_path / "store")
    (tmp_path / "other").write_text("a file where a directory should be")

    with pytest.raises(NotAllowed, match=r"other cannot be written to"):
        lay_out(directory, SIZES, two_disks(tmp_path))


@pytest.mark.parametrize("kind", ["unmarked", "relative", "another name", "through a link", "with dots", "gone"])
def test_a_link_that_leads_anywhere_else_is_no_file_of_a_package(kind: str, tmp_path: Path) -> None:
    units = package_in(tmp_path / "store") / "units"
    disk = tmp_path / "disk"
    (disk / "big").mkdir(parents=True)
    target = disk / "big" / "head.safetensors"
    target.write_bytes(b"x")
    if kind != "unmarked":
        (disk / MARK).touch()
    link = units / ("tail.safetensors" if kind == "another name" else "head.safetensors")
    if kind == "through a link":
        secret = tmp_path / "secret"
        secret.write_text("secret")
        target.unlink()
        target.symlink_to(secret)
    if kind == "gone":
        (disk / MARK).unlink()
    wanted = {"relative": Path("../../../disk/big/head.safetensors"), "with dots": disk / "big/../big" / target.name}
    link.symlink_to(wanted.get(kind, target))

    assert file_status(link) is None
    assert spread_target(link) is None


def test_a_link_as_it_should_be_is_followed(tmp_path: Path) -> None:
    units = package_in(tmp_path / "store") / "units"
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "disk" / MARK).touch()
    target = tmp_path / "disk" / "big" / "head.safetensors"
    target.write_bytes(b"xyz")
    (units / "head.safetensors").symlink_to(target)

    status = file_status(units / "head.safetensors")

    assert status is not None
    assert status.st_size == 3
