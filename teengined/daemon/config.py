"""Where the daemon's configuration comes from: its flags, and what is left empty there."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from teengined.client.endpoint import default_runtime_dir
from teengined.core.errors import ConfigError
from teengined.service.config import ConfigSources
from teengined.service.settings import Config

__all__ = ["Directories", "check_directories", "directories_of", "parse_flags", "sources_of"]

# Flags that set one key of the configuration.
_KEYS = {
    "runtime_dir": "daemon.runtime_dir",
    "state_dir": "daemon.state_dir",
    "store": "store.dir",
    "log_format": "daemon.log_format",
    "log_level": "daemon.log_level",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Directories:
    """Where this daemon keeps things, resolved."""

    runtime: Path
    state: Path
    store: Path


def parse_flags(arguments: list[str], version: str) -> argparse.Namespace:
    """Return the command line's values; prints help and exits on `--help`, and with 2 on an unknown flag."""
    parser = argparse.ArgumentParser(
        prog="teengined", description="The teengine daemon: owns this host's devices and runs models on them."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file")
    parser.add_argument("--conf-dir", type=Path, metavar="DIR", help="directory of *.toml files read after it")
    parser.add_argument("--runtime-dir", metavar="DIR", help="sockets and lock")
    parser.add_argument("--state-dir", metavar="DIR", help="measurements, and models unless --store is given")
    parser.add_argument("--store", metavar="DIR", help="model packages")
    parser.add_argument("--log-format", choices=("text", "json"))
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--check", action="store_true", help="check configuration and plugins, then exit")
    parser.add_argument(
        "--die-with-parent", action="store_true", help="stop when the process that started this one ends"
    )
    parser.add_argument("--version", action="version", version=f"teengined {version}")
    return parser.parse_args(arguments)


def sources_of(flags: argparse.Namespace) -> ConfigSources:
    """Return where the configuration is to be read."""
    given: Mapping[str, str | None] = {key: getattr(flags, flag) for flag, key in _KEYS.items()}
    return ConfigSources(
        file=flags.config,
        conf_dir=flags.conf_dir,
        flags={key: value for key, value in given.items() if value is not None},
    )


def directories_of(config: Config, environment: Mapping[str, str] = os.environ) -> Directories:
    """Return the directories, with the usual places where none is configured."""
    runtime = Path(config.daemon.runtime_dir) if config.daemon.runtime_dir else default_runtime_dir(environment)
    state = Path(config.daemon.state_dir) if config.daemon.state_dir else _default_state_dir(environment)
    store = Path(config.store.dir) if config.store.dir else state / "models"
    return Directories(runtime=runtime.absolute(), state=state.absolute(), store=store.absolute())


def check_directories(directories: Directories) -> None:
    """Refuse a file in the place of a directory; what is not there is made when it is needed.

    Raises:
        ConfigError: the store or the state directory is one.
    """
    for flag, path in (("--store", directories.store), ("--state-dir", directories.state)):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is no directory", hint=f"name another with {flag}")


def _default_state_dir(environment: Mapping[str, str]) -> Path:
    if os.getuid() == 0:
        return Path("/var/lib/teengined")
    if named := environment.get("XDG_STATE_HOME"):
        return Path(named) / "teengined"
    return Path.home() / ".local" / "state" / "teengined"
