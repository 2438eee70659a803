"""Pages of a pool come one after another, and what is in them stays what it is."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from teengined.models.kv_pages import PagesAhead, distances
from tests.unit.models.pools import make_device

PAGE = 2 << 20
BLOCK = 64 << 10
NUM_TENSORS, NUM_BLOCKS = 8, 100


def test_no_two_tensors_come_to_the_end_of_a_page_with_the_same_block() -> None:
    ahead = distances([16 << 10] * 32, PAGE)
    ends = [block for block in range(1000) for distance in ahead if (block + distance) % (PAGE // (16 << 10)) == 0]
    assert len(ends) == len(set(ends)) > 200


@pytest.mark.parametrize("sizes", [[PAGE, 3 * PAGE], [64, PAGE, 4096], [1]])
def test_nothing_is_touched_more_than_a_page_ahead(sizes: list[int]) -> None:
    for distance, size in zip(distances(sizes, PAGE), sizes, strict=True):
        assert 1 <= distance <= max(1, PAGE // size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_is_there_stays_as_it_is(dtype: torch.dtype) -> None:
    bits = torch.randint(0, 256, (20, 3, 8), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    tensor = bits.view(dtype)
    if dtype.is_floating_point:
        tensor[0], tensor[1] = -0.0, float("inf")
        tensor.nan_to_num_(1.5, posinf=float("inf"))
    before = tensor.clone().view(torch.uint8)
    pages = PagesAhead([tensor, tensor.clone()])
    for block in (0, 3, 2, 19, 500):
        pages.reach(block)
    assert torch.equal(tensor.view(torch.uint8), before)


@pytest.mark.parametrize("offset", [0, 64, PAGE // 2, PAGE - BLOCK])
def test_pages_come_a_few_at_a_time_and_are_there_when_a_block_needs_them(offset: int) -> None:
    _skip_without_huge_pages()
    with make_device(1 << 30) as device:
        buffer = device.allocate(offset + NUM_TENSORS * NUM_BLOCKS * BLOCK)
        tensors = list(buffer[offset:].view(NUM_TENSORS, NUM_BLOCKS, BLOCK))
        pages = PagesAhead(tensors)
        pages.reach(0)
        known, most = _resident_bytes(buffer), 0
        for block in range(1, NUM_BLOCKS):
            pages.reach(block)
            now = _resident_bytes(buffer)
            for tensor in tensors:  # as the pool forgets what a block held
                tensor[block].zero_()
            # At the ends of the mapping pages are small.
            assert _resident_bytes(buffer) - now < PAGE, f"block {block} had to wait for a page"
            known, most = now, max(most, now - known)
        assert 0 < most <= 2 * PAGE
        del pages, tensors
        device.free(buffer)


def _skip_without_huge_pages() -> None:
    mapping = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pytest.skip("this system has no huge pages")
    buffer = torch.frombuffer(mapping, dtype=torch.uint8)
    buffer[2 * PAGE] = 0
    if _resident_bytes(buffer) < PAGE:
        pytest.skip("this system gave no huge page")


def _resident_bytes(buffer: torch.Tensor) -> int:
    """Return what of the mapping that holds the buffer has memory."""
    address, found = buffer.data_ptr(), 0
    inside = False
    for line in Path("/proc/self/smaps").read_text("ascii").splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(each, 16) for each in head.groups())
            inside = start < address + buffer.numel() and end > address
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found
