"""Workers that die, hang, freeze or fail: their requests get an error at once, and the next ones an answer."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from teengined.client import AsyncClient, Client
from teengined.core.errors import (
    Conflict,
    DaemonUnreachable,
    DeadlineExceeded,
    DoesNotFit,
    DriverError,
    InternalError,
    PackageCorrupt,
    PackageError,
    PluginError,
    QueueFull,
    WorkerLost,
)
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Accepted, Generate, LoadModel, PlanModel, TokenChunk
from tests.fakes.fake_worker import BREAK, DIE, FAIL, FREEZE, HANG
from tests.fakes.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def daemon() -> Iterator[RunningDaemon]:
    limits = '[limits]\nstep_timeout = "2s"\nmax_waiting = 2\n[batching]\nmax_running = 2'
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.005"', settings=limits) as running:
        with running.client() as client:
            running.load(client, assignment={"cpu:0": 2, "cpu:1": 2}, num_slots=2)
        yield running


@pytest.fixture
def client(daemon: RunningDaemon) -> Iterator[Client]:
    with daemon.client() as connected:
        wait_until(lambda: states(connected) == ["ready"], "the deployment is ready")
        yield connected


MOODY = """
from teengined.interfaces.hookspecs import hookimpl
from teengined.interfaces.policy import SchedulingPolicy


class Moody(SchedulingPolicy):
    name = "moody"

    def order(self, sequences, now_seconds):
        if any(sequence.num_prompt_tokens > 3 for sequence in sequences):
            raise ZeroDivisionError("in a mood")
        return [sequence.id for sequence in sequences]


@hookimpl
def teengine_register_scheduling_policies():
    return [Moody]
"""


def install_moody_policy(directory: Path) -> dict[str, str]:
    """Install a scheduling policy that raises at a prompt of four tokens; return the environment that finds it."""
    information = directory / "moody-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[teengine]\nmoody = moody\n")
    (directory / "moody.py").write_text(MOODY)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))}


def ask(prompt: str, max_tokens: int = 6) -> Generate:
    return Generate(model="bytes", prompt=prompt, sampling=SamplingParams(max_tokens=max_tokens))


def answer(client: Client, prompt: str, max_tokens: int = 6) -> str:
    events = client.generate(ask(prompt, max_tokens))
    return "".join(event.text for event in events if isinstance(event, TokenChunk))


def states(client: Client) -> list[str]:
    return [deployment.state for deployment in client.deployments().deployments]


def pids(client: Client) -> list[int]:
    return [device.worker_pid for device in client.status().devices if device.worker_pid]


def is_alive(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("device", [0, 1])
def test_killed_worker_fails_its_answers_at_once_and_comes_back(client: Client, device: int):
    before = pids(client)
    events = client.generate(ask("abc", max_tokens=2000))
    next(events)
    next(events)

    os.kill(before[device], signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL") as caught:
        list(events)

    assert caught.value.retryable
    assert answer(client, "abc") == "abcabc"
    assert pids(client)[device] != before[device]


def test_killed_worker_takes_its_own_answers_only():
    with RunningDaemon(worker_arguments=', "--step-seconds", "0.005"') as running, running.client() as client:
        running.load(client, name="left", device_ids=("cpu:0",))
        running.load(client, name="right", device_ids=("cpu:1",))
        by_id = {device.spec.id: device.worker_pid for device in client.status().devices}
        requests = [
            Generate(model=name, prompt="abc", sampling=SamplingParams(max_tokens=300)) for name in ("left", "right")
        ]
        waiting = [client.generate(requests[0]) for _ in range(5)]
        going_on = client.generate(requests[1])
        for events in (*waiting, going_on):
            next(events)

        os.kill(by_id["cpu:0"] or 0, signal.SIGKILL)

        for events in waiting:
            with pytest.raises(WorkerLost, match="SIGKILL") as caught:
                list(events)
            assert caught.value.retryable
        assert "".join(event.text for event in going_on if isinstance(event, TokenChunk)) == "abc" * 100


def test_worker_that_dies_in_a_step_is_replaced(client: Client):
    with pytest.raises(WorkerLost):
        answer(client, chr(DIE) + "bc")

    assert answer(client, "abc") == "abcabc"


def test_step_that_fails_fails_its_request_only(client: Client):
    before = pids(client)

    with pytest.raises(InternalError, match=r"cpu:1: this step was meant to fail"):
        answer(client, chr(FAIL) + "bc")

    assert answer(client, "abc") == "abcabc"
    assert pids(client) == before


def test_stage_that_lost_its_package_is_opened_again(client: Client):
    before = pids(client)

    with pytest.raises(PackageError, match=r"the package changed on disk"):
        answer(client, chr(BREAK) + "bc")

    assert answer(client, "abc") == "abcabc"
    assert pids(client) == before


def test_worker_that_hangs_in_a_step_is_killed_at_the_deadline(client: Client, daemon: RunningDaemon):
    with pytest.raises(DeadlineExceeded, match="longer than 2 s"):
        answer(client, chr(HANG) + "bc")

    wait_until(lambda: "did not finish a step within 2 s" in daemon.log(), "the log tells why")
    assert answer(client, "abc") == "abcabc"


def test_frozen_worker_is_found_by_its_silence(client: Client):
    with pytest.raises(WorkerLost, match="did not answer for 1 s"):
        answer(client, chr(FREEZE) + "bc")

    assert answer(client, "abc") == "abcabc"


def test_request_beyond_the_queue_is_refused_with_a_time_to_come_back(daemon: RunningDaemon, client: Client):
    busy = [client.generate(ask("ab", max_tokens=500)) for _ in range(4)]
    assert all(isinstance(next(events), Accepted) for events in busy)

    with pytest.raises(QueueFull, match="wait already; the limit is 2") as caught:
        answer(client, "abc")

    assert caught.value.retryable
    assert (caught.value.retry_after_seconds or 0) > 0
    busy.clear()
    wait_until(lambda: client.status().num_running + client.status().num_queued == 0, "all are cancelled")


def test_model_that_does_not_fit_is_refused_and_leaves_nothing(daemon: RunningDaemon, client: Client):
    with pytest.raises(DoesNotFit):
        daemon.load(client, name="huge", num_slots=400)

    assert len(states(client)) == 1


def test_worker_that_cannot_start_fails_the_load():
    with RunningDaemon() as running, running.client() as client:
        running.order_file.write_text("die")

        with pytest.raises(WorkerLost, match="exited with status 3"):
            running.load(client)

        assert states(client) == []
        running.order_file.unlink()
        assert running.load(client).deployment.state == "ready"


def test_worker_that_says_nothing_is_killed_at_the_deadline():
    environment = {"TEENGINED_WORKER__START_TIMEOUT": "1s"}
    with RunningDaemon(environment=environment) as running, running.client() as client:
        running.order_file.write_text("say nothing")

        with pytest.raises(WorkerLost, match="said nothing within 1 s"):
            running.load(client)

        wait_until(lambda: pids(client) == [], "the silent worker is gone")


def test_worker_that_dies_again_and_again_fails_the_deployment_for_good():
    with RunningDaemon(worker_settings="max_failures = 3") as running, running.client() as client:
        running.load(client)
        running.order_file.write_text("die")

        with pytest.raises(WorkerLost):
            answer(client, chr(DIE) + "bc")
        wait_until(lambda: states(client) == ["failed"], "the deployment has failed")

        assert "exited with status 3" in client.deployments().deployments[0].problem
        with pytest.raises(WorkerLost, match="failed"):
            answer(client, "abc")
        assert running.log().count("workers: the worker of cpu:0") == 3
        running.order_file.unlink()
        client.unload("bytes")
        running.load(client)
        assert answer(client, "abc") == "abcabc"


def test_requests_wait_while_a_worker_comes_back():
    with RunningDaemon(worker_settings='restart_delay_max = "1s"') as running, running.client() as client:
        running.load(client)
        os.kill(pids(client)[0], signal.SIGKILL)
        wait_until(lambda: states(client) == ["loading"], "the loss is noticed")

        assert answer(client, "abc") == "abcabc"


def test_measuring_that_fails_is_told_with_its_last_words():
    with RunningDaemon() as running:
        text = running.config_file.read_text()
        running.config_file.write_text(text.replace("fake_measure.py']", "fake_measure.py', '--fail']"))
        assert running.terminate() == 0
        running.log_file.unlink()
        running.process = running.start()
        wait_until(running.is_ready, "the daemon is ready")

        with running.client() as client, pytest.raises(DriverError, match="no such device"):
            client.measure()


def test_no_worker_outlives_a_daemon_that_is_killed():
    with RunningDaemon() as running:
        with running.client() as client:
            running.load(client, assignment={"cpu:0": 2, "cpu:1": 2})
            workers = pids(client)
        assert all(is_alive(pid) for pid in workers)

        running.process.kill()
        running.process.wait()

        wait_until(lambda: not any(is_alive(pid) for pid in workers), "the workers are gone")


def test_request_during_the_load_waits_for_it():
    async def story(running: RunningDaemon) -> str:
        async with AsyncClient(running.endpoint) as client:
            loading = asyncio.create_task(client.load(LoadModel(plan=PlanModel(model="bytes"))))
            while not (await client.deployments()).deployments:  # noqa: ASYNC110 - across processes
                await asyncio.sleep(0.01)
            events = client.generate(ask("abc"))
            assert isinstance(await anext(events), Accepted)
            running.order_file.unlink()
            await loading
            return "".join([event.text async for event in events if isinstance(event, TokenChunk)])

    with RunningDaemon() as running:
        running.order_file.write_text("say nothing")

        assert asyncio.run(story(running)) == "abcabc"


def test_load_that_fails_fails_the_requests_that_waited_for_it():
    async def story(running: RunningDaemon) -> None:
        async with AsyncClient(running.endpoint) as client:
            loading = asyncio.create_task(client.load(LoadModel(plan=PlanModel(model="bytes"))))
            while not (await client.deployments()).deployments:  # noqa: ASYNC110 - across processes
                await asyncio.sleep(0.01)
            events = client.generate(ask("abc"))
            await anext(events)
            with pytest.raises(WorkerLost):
                await anext(events)
            with pytest.raises(WorkerLost, match="said nothing"):
                await loading

    with RunningDaemon(environment={"TEENGINED_WORKER__START_TIMEOUT": "1s"}) as running:
        running.order_file.write_text("say nothing")

        asyncio.run(story(running))


def test_asyncio_client_learns_at_once_that_the_daemon_died():
    async def story(running: RunningDaemon) -> None:
        async with AsyncClient(running.endpoint) as client:
            await client.load(LoadModel(plan=PlanModel(model="bytes")))
            events = client.generate(ask("abc", max_tokens=4000))
            await anext(events)
            running.process.kill()
            with pytest.raises(DaemonUnreachable):
                async for _ in events:
                    pass
            with pytest.raises(DaemonUnreachable, match="no daemon"):
                await client.status()

    with RunningDaemon(worker_arguments=', "--step-seconds", "0.01"') as running:
        asyncio.run(story(running))


def test_asyncio_answer_left_early_is_cancelled():
    async def story(running: RunningDaemon) -> None:
        async with AsyncClient(running.endpoint) as client:
            await client.load(LoadModel(plan=PlanModel(model="bytes")))
            async with contextlib.aclosing(client.generate(ask("abc", max_tokens=4000))) as events:
                await anext(events)
            while (await client.status()).num_running:  # noqa: ASYNC110 - across processes
                await asyncio.sleep(0.01)
            assert (await client.deployments()).deployments[0].num_completed == 0

    with RunningDaemon(worker_arguments=', "--step-seconds", "0.01"') as running:
        asyncio.run(story(running))


def test_policy_that_raises_fails_its_deployment_and_the_daemon_goes_on(tmp_path: Path):
    settings = '[batching]\nscheduling_policy = "moody"'
    with (
        RunningDaemon(settings=settings, environment=install_moody_policy(tmp_path)) as running,
        running.client() as client,
    ):
        running.load(client)

        with pytest.raises(PluginError, match="'moody' failed: ZeroDivisionError"):
            answer(client, "abcd")

        assert states(client) == ["failed"]
        client.unload("bytes")
        assert running.load(client).deployment.state == "ready"
        assert answer(client, "abc", max_tokens=2) == "ab"


def test_changed_configuration_of_a_package_refuses_the_load():
    with RunningDaemon() as running, running.client() as client:
        next(running.directory.glob("store/*/config.json")).write_text('{"rope_theta": 1}')

        with pytest.raises(PackageCorrupt, match=r"config\.json differs"):
            running.load(client)

        assert states(client) == []


def test_unload_waits_for_the_step_of_a_cancelled_answer_and_no_worker_is_killed():
    environment = {"TEENGINED_WORKER__STOP_TIMEOUT": "200ms"}
    with (
        RunningDaemon(worker_arguments=', "--step-seconds", "0.8"', environment=environment) as running,
        running.client() as client,
    ):
        running.load(client)
        before = pids(client)
        with contextlib.closing(client.generate(ask("abc"))) as events:
            next(events)

        client.unload("bytes")

        assert pids(client) == before


def test_model_that_is_being_unloaded_stays_so_when_its_worker_comes_back():
    async def story(running: RunningDaemon) -> str:
        async with AsyncClient(running.endpoint) as client:
            loaded = await client.load(LoadModel(plan=PlanModel(model="bytes")))
            os.kill(next(d.worker_pid for d in (await client.status()).devices if d.worker_pid), signal.SIGKILL)
            while (await client.deployments()).deployments[0].state != "loading":  # noqa: ASYNC110 - across processes
                await asyncio.sleep(0.01)
            events = client.generate(ask("abc", max_tokens=200))
            await anext(events)
            unloading = asyncio.create_task(client.unload(loaded.deployment.model))
            await anext(events)
            state = (await client.deployments()).deployments[0].state
            async for _ in events:
                pass
            await unloading
            return state

    with RunningDaemon(
        worker_arguments=', "--step-seconds", "0.005"', environment={"TEENGINED_WORKER__RESTART_DELAY": "500ms"}
    ) as running:
        assert asyncio.run(story(running)) == "unloading"


def test_load_of_a_model_that_is_being_unloaded_says_to_wait():
    async def story(running: RunningDaemon) -> str:
        async with AsyncClient(running.endpoint) as client:
            await client.load(LoadModel(plan=PlanModel(model="bytes")))
            async with contextlib.aclosing(client.generate(ask("abc", max_tokens=200))) as events:
                await anext(events)
                unloading = asyncio.create_task(client.unload("bytes"))
                while (await client.deployments()).deployments[0].state != "unloading":  # noqa: ASYNC110 - across processes
                    await asyncio.sleep(0.01)
                with pytest.raises(Conflict) as caught:
                    await client.load(LoadModel(plan=PlanModel(model="bytes")))
            await unloading
            return caught.value.hint

    with RunningDaemon(worker_arguments=', "--step-seconds", "0.05"') as running:
        assert asyncio.run(story(running)).startswith("wait until")
