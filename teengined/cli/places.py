"""Where this user's model packages are: a command that works without the daemon must find the daemon's place."""

import os
from collections.abc import Mapping
from pathlib import Path

from teengined.cli.invocation import Invocation
from teengined.core.errors import DaemonUnreachable

__all__ = ["store_directory"]


def store_directory(invocation: Invocation) -> Path:
    """Return the running daemon's store or, without a daemon, that of one started here.

    Raises:
        ConfigError: the configuration here is wrong.
    """
    values = _values(invocation)
    if values["store.dir"]:
        return Path(values["store.dir"])
    return _state_directory(values["daemon.state_dir"]) / "models"


def _values(invocation: Invocation) -> Mapping[str, str]:
    try:
        with invocation.client() as client:
            items = client.config().items
    except DaemonUnreachable:
        from teengined.service.config import ConfigSources, load_config

        items = load_config(ConfigSources()).items
    return {item.key: item.value for item in items}


def _state_directory(named: str) -> Path:
    if named:
        return Path(named)
    if os.getuid() == 0:
        return Path("/var/lib/teengined")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "teengined"
