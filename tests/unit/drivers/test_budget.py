import threading

import pytest

from teengined.core.errors import DriverError, OutOfDeviceMemory
from teengined_drivers.budget import Budget, whole_pages


@pytest.mark.parametrize(("num_bytes", "pages"), [(1, 1), (4096, 1), (4097, 2), (8192, 2)])
def test_buffer_takes_whole_pages(num_bytes: int, pages: int) -> None:
    assert whole_pages(num_bytes) == pages * 4096


@pytest.mark.parametrize("num_bytes", [0, -5])
def test_buffer_of_nothing_is_refused(num_bytes: int) -> None:
    with pytest.raises(DriverError):
        whole_pages(num_bytes)


def test_refusal_names_the_device_what_is_left_the_budget_and_what_was_asked() -> None:
    budget = Budget("cpu:1", 10_000_000)
    budget.take(4_000_000)

    with pytest.raises(OutOfDeviceMemory, match=r"cpu:1 has 6.0 MB left of its budget of 10.0 MB; 7.0 MB were asked"):
        budget.take(7_000_000)

    assert budget.taken_bytes == 4_000_000


def test_threads_never_take_more_than_there_is() -> None:
    budget = Budget("cpu:0", 1000)
    refused = []

    def take_many() -> None:
        for _ in range(400):
            try:
                budget.take(1)
            except OutOfDeviceMemory:
                refused.append(1)

    threads = [threading.Thread(target=take_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (budget.taken_bytes, len(refused)) == (1000, 600)
