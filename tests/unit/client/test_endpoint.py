import socket
import tempfile
import time
from pathlib import Path

import pytest

from teengined.client import Client
from teengined.client.endpoint import default_endpoint, default_runtime_dir, endpoint_of, probe
from teengined.core.errors import ConfigError, DaemonUnreachable


@pytest.mark.parametrize("address", ["ipc:///run/x.sock", "unix:///run/x.sock", "/run/x.sock"])
def test_every_spelling_of_a_path_is_one_endpoint(address: str):
    assert endpoint_of(address) == "ipc:///run/x.sock"


def test_directory_stands_for_the_socket_in_it(tmp_path: Path):
    assert endpoint_of(str(tmp_path)) == f"ipc://{tmp_path}/teengined.sock"


@pytest.mark.parametrize("address", ["tcp://host:1", "http://host", f"/{'long' * 40}"])
def test_what_is_no_local_socket_is_refused(address: str):
    with pytest.raises(ConfigError):
        endpoint_of(address)


def test_environment_names_the_endpoint():
    assert default_endpoint({"TEENGINE_HOST": "/run/other.sock"}) == "ipc:///run/other.sock"


def test_user_has_a_private_runtime_directory():
    assert default_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/7"}, uid=7) == Path("/run/user/7/teengined")
    assert default_runtime_dir({}, uid=7) == Path("/tmp/teengined-7")
    assert default_runtime_dir({"XDG_RUNTIME_DIR": "/run/user/0"}, uid=0) == Path("/run/teengined")


def test_missing_daemon_is_told_at_once_with_the_way_to_start_it():
    began = time.monotonic()

    with pytest.raises(DaemonUnreachable) as caught, Client("/nowhere/teengined.sock") as client:
        client.status()

    assert "systemctl start teengined" in caught.value.hint
    assert time.monotonic() - began < 5


def test_socket_that_nobody_serves_any_more_is_told_apart():
    with tempfile.TemporaryDirectory(prefix="te-") as short:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(f"{short}/s")

        with pytest.raises(DaemonUnreachable, match="no daemon answers"):
            probe(f"ipc://{short}/s")
