import asyncio

import pytest

from teengined.core.device import DeviceSpec
from teengined.core.errors import WorkerLost
from teengined.protocol.codec import CodecLimits
from teengined.service.process import describe_exit
from teengined.service.settings import WorkerSettings
from teengined.service.workers import WorkerPool, restart_delay


@pytest.mark.parametrize(("failures", "seconds"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (10_000, 30.0)])
def test_wait_before_a_restart_doubles_up_to_its_bound(failures: int, seconds: float):
    assert restart_delay(failures, WorkerSettings()) == seconds


@pytest.mark.parametrize(
    ("status", "told"), [(3, "exited with status 3"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")]
)
def test_exit_is_told_in_words(status: int, told: str):
    assert describe_exit(status) == told


def test_program_that_cannot_be_started_is_a_lost_worker():
    def launch(command, environment):
        raise FileNotFoundError(2, "No such file or directory", "worker")

    spec = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=1 << 20, threads=1)
    pool = WorkerPool((spec,), WorkerSettings(command=("worker",)), CodecLimits(), launch)

    with pytest.raises(WorkerLost, match=r"cannot be started: .*No such file"):
        asyncio.run(pool.ensure("cpu:0"))
    assert pool.state_of("cpu:0")[0] == "failed"
