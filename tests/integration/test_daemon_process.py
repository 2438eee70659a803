"""The daemon as a process: alone on its directory, ready soon, small, told by systemd, and gone when told."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from teengined.client import Client
from teengined.core.errors import Cancelled, DaemonUnreachable, Draining
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Finished, Generate
from tests.fakes.running_daemon import RunningDaemon, wait_until

pytestmark = pytest.mark.system
SLOW = ', "--step-seconds", "0.02"'
MAX_RSS_BYTES = 120_000_000


@pytest.fixture
def daemon() -> Iterator[RunningDaemon]:
    with RunningDaemon(worker_arguments=SLOW) as running:
        yield running


def ask(max_tokens: int) -> Generate:
    return Generate(model="bytes", prompt="abc", sampling=SamplingParams(max_tokens=max_tokens))


def run_daemon(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "teengined.daemon.main", *arguments]
    return subprocess.run(
        command, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=30, check=False
    )


def test_second_daemon_is_refused_and_the_first_unharmed(daemon: RunningDaemon):
    with daemon.client() as client:
        daemon.load(client)
        events = client.generate(ask(100))
        next(events)
        second_log = daemon.directory / "second"

        second = daemon.start(log_file=second_log)

        assert second.wait(timeout=20) == 75
        assert f"pid {daemon.process.pid}" in second_log.read_text()
        assert isinstance(list(events)[-1], Finished)


def test_socket_left_by_a_killed_daemon_is_taken_over(daemon: RunningDaemon):
    daemon.process.kill()
    daemon.process.wait()
    daemon.log_file.unlink()
    with (
        pytest.raises(DaemonUnreachable, match="no daemon answers"),
        daemon.client() as client,
    ):
        client.status()

    daemon.process = daemon.start()
    wait_until(daemon.is_ready, "the daemon is ready")

    with daemon.client() as client:
        assert client.status().pid == daemon.process.pid


def test_socket_is_for_owner_and_group_only(daemon: RunningDaemon):
    modes = [path.stat().st_mode & 0o777 for path in (daemon.runtime_dir, daemon.runtime_dir / "teengined.sock")]

    assert modes == [0o750, 0o660]
    assert (daemon.runtime_dir / "workers").stat().st_mode & 0o777 == 0o700


def test_sigterm_lets_answers_finish_and_refuses_new_ones(daemon: RunningDaemon):
    with daemon.client() as client, daemon.client() as late:
        daemon.load(client)
        late.status()
        events = client.generate(ask(50))
        next(events)
        next(events)

        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in daemon.log(), "the daemon drains")

        with pytest.raises(Draining):
            list(late.generate(ask(1)))
        assert late.status().state == "draining"
        assert isinstance(list(events)[-1], Finished)
        assert daemon.process.wait(timeout=20) == 0


def test_drain_call_does_as_sigterm_does(daemon: RunningDaemon):
    with daemon.client() as client:
        client.drain()

    assert daemon.process.wait(timeout=20) == 0
    assert not (daemon.runtime_dir / "teengined.sock").exists()


def test_answers_beyond_the_drain_time_are_told(daemon: RunningDaemon):
    daemon.terminate()
    text = daemon.config_file.read_text().replace('drain_timeout = "5s"', 'drain_timeout = "200ms"')
    daemon.config_file.write_text(text)
    daemon.log_file.unlink()
    daemon.process = daemon.start()
    wait_until(daemon.is_ready, "the daemon is ready")
    with daemon.client() as client:
        daemon.load(client)
        events = client.generate(ask(4000))
        next(events)

        daemon.process.send_signal(signal.SIGTERM)

        with pytest.raises(Draining, match="before the answer was complete"):
            list(events)
    assert daemon.process.wait(timeout=20) == 0


def test_second_signal_stops_at_once_and_leaves_no_worker(daemon: RunningDaemon):
    with daemon.client() as client:
        daemon.load(client)
        pid = client.status().devices[0].worker_pid
        events = client.generate(ask(4000))
        next(events)

        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in daemon.log(), "the daemon drains")
        daemon.process.send_signal(signal.SIGINT)

        with pytest.raises((Draining, Cancelled, DaemonUnreachable)):
            list(events)
        assert daemon.process.wait(timeout=20) == 0
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the worker is gone")


def test_client_learns_at_once_that_the_daemon_died(daemon: RunningDaemon):
    with daemon.client() as client:
        daemon.load(client)
        events = client.generate(ask(4000))
        next(events)

        daemon.process.kill()
        daemon.process.wait()

        with pytest.raises(DaemonUnreachable):
            list(events)
        with pytest.raises(DaemonUnreachable):
            client.status()


def test_daemon_is_small_and_without_torch(daemon: RunningDaemon):
    with daemon.client() as client:
        daemon.load(client)
        list(client.generate(ask(5)))

        assert client.status().rss_bytes < MAX_RSS_BYTES
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "libtorch" not in maps


def test_check_reads_everything_and_imports_no_torch(daemon: RunningDaemon):
    program = (
        "import sys; from teengined.daemon.main import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'jinja2', 'tokenizers', 'numpy'} & set(sys.modules);"
        "sys.exit(f'{heavy} imported' if heavy else status)"
    )
    command = [sys.executable, "-c", program, "--check", "--config", str(daemon.config_file)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "configuration is valid" in done.stdout


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[daemon]\ndrain_timout = 5", "unknown key 'drain_timout'; did you mean 'drain_timeout'?"),
        ("[[devices]]\nid = 'nosuch:0'\nmemory = '1GiB'", "no driver named 'nosuch'"),
        ("[batching]\nscheduling_policy = 'fifi'", "did you mean 'fifo'?"),
        ("not toml", "is no TOML"),
        ("[daemon]\nruntime_dir = '/proc/none'", "cannot be made"),
        (f"[daemon]\nruntime_dir = '/tmp/{'long' * 30}'", "too many for the paths of sockets"),
    ],
)
def test_wrong_configuration_ends_with_78_and_a_sentence(tmp_path: Path, content: str, told: str):
    file = tmp_path / "teengined.toml"
    file.write_text(content)

    done = run_daemon("--config", str(file))

    assert done.returncode == 78
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_systemd_is_told_ready_watchdog_and_stopping(tmp_path: Path):
    with tempfile.TemporaryDirectory(prefix="te-") as short, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"{short}/notify")
        told.settimeout(20)
        environment = {"NOTIFY_SOCKET": f"{short}/notify", "WATCHDOG_USEC": "200000"}
        command = [sys.executable, "-m", "teengined.daemon.main", "--runtime-dir", f"{short}/run"]
        command += ["--state-dir", f"{short}/state", "--die-with-parent"]
        process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)

        heard = [told.recv(4096).decode() for _ in range(4)]
        process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard[-1]:
            heard.append(told.recv(4096).decode())

        assert process.wait(timeout=20) == 0
        assert any(state.startswith("READY=1\nSTATUS=listening on ipc://") for state in heard)
        assert heard.count("WATCHDOG=1") >= 2


def test_socket_of_systemd_is_served_with_what_arrived_before_the_start():
    with tempfile.TemporaryDirectory(prefix="te-") as short:
        path = f"{short}/teengined.sock"
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        listening.listen(16)
        activate = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
            "os.execv(sys.executable, [sys.executable, '-m', 'teengined.daemon.main', *sys.argv[2:]])"
        )
        command = [sys.executable, "-c", activate, str(listening.fileno()), "--runtime-dir", f"{short}/run"]
        command += ["--state-dir", f"{short}/state", "--die-with-parent"]

        with Client(path) as client:
            process = subprocess.Popen(command, pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL)
            status = client.status()

        assert status.pid == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert Path(path).exists()
        listening.close()


def test_log_as_json_has_an_object_on_each_line(daemon: RunningDaemon):
    daemon.terminate()
    daemon.log_file.unlink()

    daemon.process = daemon.start("--log-format", "json")
    wait_until(daemon.is_ready, "the daemon is ready")
    daemon.terminate()

    lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert lines[0]["level"] == "info"
    assert lines[0]["message"].startswith("ready: ")


def test_prompts_are_never_logged():
    with RunningDaemon() as running, running.client() as client:
        running.load(client)
        list(client.generate(Generate(model="bytes", prompt="secret words", sampling=SamplingParams(max_tokens=30))))

        assert "secret" not in running.log()
