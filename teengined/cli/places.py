"""Where this user's model packages are: a command that works without the daemon must find the daemon's place."""

from pathlib import Path

from teengined.cli.invocation import Invocation
from teengined.core.errors import DaemonUnreachable

__all__ = ["store_directory"]


def store_directory(invocation: Invocation) -> Path:
    """Return the running daemon's store or, without a daemon, that of one started here.

    Raises:
        ConfigError: the configuration here is wrong.
    """
    from teengined.daemon.config import directories_of
    from teengined.service.config import ConfigSources, load_config
    from teengined.service.settings import Config, DaemonSettings, StoreSettings

    try:
        with invocation.client() as client:
            values = {item.key: item.value for item in client.config().items}
    except DaemonUnreachable:
        return directories_of(load_config(ConfigSources()).config).store
    daemon = DaemonSettings(state_dir=values["daemon.state_dir"])
    return directories_of(Config(daemon=daemon, store=StoreSettings(dir=values["store.dir"]))).store
