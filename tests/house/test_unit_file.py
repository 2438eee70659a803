"""systemd/teengined.service speaks of the daemon as it is."""

import configparser

import pytest

from teengined.client.endpoint import SOCKET_NAME, SYSTEM_RUNTIME_DIR
from teengined.core.errors import AlreadyRunning, ConfigError
from teengined.daemon.config import parse_flags
from teengined.service.settings import Config
from tests.house.tree import ROOT


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(ROOT / "systemd/teengined.service")
    return unit["Service"]


def test_daemon_takes_the_flags_it_is_started_with(service: configparser.SectionProxy) -> None:
    program, *flags = service["ExecStart"].split()

    assert program.endswith("/teengined")
    assert parse_flags(flags, "0").runtime_dir == str(SYSTEM_RUNTIME_DIR)


def test_errors_that_do_not_mend_themselves_are_not_tried_again(service: configparser.SectionProxy) -> None:
    statuses = {int(word) for word in service["RestartPreventExitStatus"].split()}

    assert statuses == {AlreadyRunning.exit_code, ConfigError.exit_code}


def test_there_is_time_to_drain_and_to_end_the_workers(service: configparser.SectionProxy) -> None:
    config = Config()

    assert float(service["TimeoutStopSec"]) > config.daemon.drain_timeout + 3 * config.worker.stop_timeout


def test_compiled_kernels_have_a_place_that_is_the_daemon_s_alone(service: configparser.SectionProxy) -> None:
    assert service["CacheDirectory"] == "teengined"
    assert int(service["CacheDirectoryMode"], 8) == 0o700


def test_socket_is_the_one_that_clients_try() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read(ROOT / "systemd/teengined.socket")

    assert unit["Socket"]["ListenStream"] == str(SYSTEM_RUNTIME_DIR / SOCKET_NAME)
    assert int(unit["Socket"]["SocketMode"], 8) == Config().daemon.socket_mode
