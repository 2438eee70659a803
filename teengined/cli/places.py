"""Where this user's model packages are: a command that works without the daemon must find the daemon's place."""

import ast
from dataclasses import dataclass
from pathlib import Path

from teengined.cli.invocation import Invocation
from teengined.core.errors import DaemonUnreachable

__all__ = ["StorePlaces", "store_directory", "store_places"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorePlaces:
    """Where packages are, and the other disks that new ones are spread over."""

    directory: Path
    disks: tuple[Path, ...]

    @property
    def arguments(self) -> list[str]:
        """What the converter is told of them."""
        return ["--store", str(self.directory), *(word for disk in self.disks for word in ("--disk", str(disk)))]


def store_directory(invocation: Invocation) -> Path:
    """Return the running daemon's store or, without a daemon, that of one started here. Raises as `store_places`."""
    return store_places(invocation).directory


def store_places(invocation: Invocation, store: Path | None = None) -> StorePlaces:
    """Return the places of the running daemon or, without a daemon, of one started here; only `store` where given.

    Raises:
        ConfigError: the configuration here is wrong.
    """
    from teengined.daemon.config import directories_of
    from teengined.service.config import ConfigSources, load_config
    from teengined.service.settings import Config, DaemonSettings, StoreSettings

    if store is not None:
        return StorePlaces(directory=store, disks=())
    try:
        with invocation.client() as client:
            values = {item.key: item.value for item in client.config().items}
    except DaemonUnreachable:
        config = load_config(ConfigSources()).config
        return StorePlaces(directory=directories_of(config).store, disks=tuple(map(Path, config.store.paths)))
    daemon = DaemonSettings(state_dir=values["daemon.state_dir"])
    directories = directories_of(Config(daemon=daemon, store=StoreSettings(dir=values["store.dir"])))
    disks: list[str] = ast.literal_eval(values.get("store.paths", "[]"))
    return StorePlaces(directory=directories.store, disks=tuple(map(Path, disks)))
