"""Configuration from files, environment and flags, with the origin of every value.

Later beats earlier: defaults, the file, the `conf.d` files by name, `TEENGINED_SECTION__FIELD`, flags. Each source is
checked on its own, so that an error names the one that is wrong. Read once; the command line reads it the same way
without a daemon.
"""

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from teengined.core.errors import ConfigError
from teengined.core.quantities import parse_bytes, parse_seconds
from teengined.core.records import RecordError, from_mapping, to_mapping
from teengined.protocol.messages import ConfigItem
from teengined.service.metrics.http import loopback_address
from teengined.service.settings import Config, DeviceSettings

__all__ = ["DEFAULT_CONF_DIR", "DEFAULT_FILE", "ConfigSources", "LoadedConfig", "load_config", "validate_file"]

DEFAULT_FILE = Path("/etc/teengined/teengined.toml")
DEFAULT_CONF_DIR = Path("/etc/teengined/conf.d")
_PREFIX = "TEENGINED_"
_EXACT_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_SECTIONS: dict[str, Any] = {
    section.name: cast("Any", section.default_factory)
    for section in dataclasses.fields(Config)
    if section.name != "devices"
}
_Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSources:
    """Where to read. A file that was named must exist; the default places may be absent."""

    file: Path | None = None
    """None: `/etc/teengined/teengined.toml`, if it is there."""
    conf_dir: Path | None = None
    """None: `/etc/teengined/conf.d` where no `file` is named; a named file stands alone."""
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Dotted key -> text, such as `daemon.runtime_dir`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """The configuration, and each value's text and origin in the order of the sections."""

    config: Config
    items: tuple[ConfigItem, ...]


def load_config(sources: ConfigSources, environment: Mapping[str, str] = os.environ) -> LoadedConfig:
    """Return the configuration of these sources.

    Raises:
        ConfigError: unreadable file, unknown key (the message names source, key and the nearest valid key), wrong type
            or size, or a value out of range.
    """
    merged: _Tables = {name: {} for name in _SECTIONS}
    origins: dict[str, str] = {}
    for origin, tables in _read_all(sources, environment):
        _check(tables, origin)
        devices = tables.pop("devices", None)
        if devices is not None:
            merged["devices"] = devices
            origins["devices"] = origin
        for section, table in tables.items():
            merged[section].update(table)
            origins.update({f"{section}.{key}": origin for key in table})
    config = _build(merged, "the configuration")
    _check_together(config, "the configuration")
    return LoadedConfig(config=config, items=_items(config, origins))


def validate_file(path: Path) -> Config:
    """Return the configuration of one file alone, over the defaults.

    Raises:
        ConfigError: as `load_config`.
    """
    tables = _read_file(path)
    _check(tables, f"file {path}")
    config = _build(tables, f"file {path}")
    _check_together(config, f"file {path}")
    return config


def _read_all(sources: ConfigSources, environment: Mapping[str, str]) -> list[tuple[str, _Tables]]:
    found = [(f"file {path}", _read_file(path)) for path in _files(sources)]
    for name, text in sorted(environment.items()):
        if name.startswith(_PREFIX):
            section, _, key = name.removeprefix(_PREFIX).lower().partition("__")
            found.append((f"env {name}", _from_text(section, key, text, f"env {name}")))
    for dotted, text in sources.flags.items():
        section, _, key = dotted.partition(".")
        found.append(("flag", _from_text(section, key, text, "flag")))
    return found


def _files(sources: ConfigSources) -> list[Path]:
    named = sources.file is not None
    files = [sources.file] if sources.file else [DEFAULT_FILE] * DEFAULT_FILE.exists()
    conf_dir = sources.conf_dir or (None if named else DEFAULT_CONF_DIR)
    if sources.conf_dir is not None and not sources.conf_dir.is_dir():
        raise ConfigError(
            f"there is no directory {sources.conf_dir}", hint="--conf-dir names a directory of *.toml files"
        )
    return [*files, *(sorted(conf_dir.glob("*.toml")) if conf_dir is not None and conf_dir.is_dir() else [])]


def _read_file(path: Path) -> _Tables:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the name and its rights") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"file {path} is no TOML: {error}", hint="`teengine config validate FILE` checks it"
        ) from error


def _from_text(section: str, key: str, text: str, origin: str) -> _Tables:
    """Return the one value that a variable or a flag sets; text stays text, anything else is written as in TOML."""
    if section == "devices" and not key:
        return cast("_Tables", {"devices": _toml_value(text, origin)})
    if section not in _SECTIONS:
        raise _unknown("section", section, tuple(_SECTIONS), origin)
    field = _fields(_SECTIONS[section]).get(key)
    if field is None:
        raise _unknown(f"key of {section}", key, tuple(_fields(_SECTIONS[section])), origin)
    is_text = isinstance(field.default, str) or field.metadata["unit"] in ("bytes", "seconds")
    return {section: {key: text if is_text else _toml_value(text, origin)}}


def _toml_value(text: str, origin: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f'{origin}: {text!r} is not written as in TOML: 5, true, or ["a", "b"]') from error


def _check(tables: _Tables, origin: str) -> None:
    """Convert sizes and durations in place, and refuse what no section knows or allows."""
    for section, table in tables.items():
        if section == "devices":
            for device in cast("list[Any]", table) if isinstance(table, list) else []:
                _convert(DeviceSettings, device, origin)
        elif section not in _SECTIONS:
            raise _unknown("section", section, (*_SECTIONS, "devices"), origin)
        else:
            _convert(_SECTIONS[section], table, origin)
    _build(tables, origin)


def _build(tables: Mapping[str, Any], origin: str) -> Config:
    try:
        config = from_mapping(Config, tables)
    except RecordError as error:
        raise ConfigError(
            f"{origin}: {error}", hint="`teengine config show` lists every key with its meaning"
        ) from error
    for section in _SECTIONS:
        _check_range(getattr(config, section), section, origin)
    for index, device in enumerate(config.devices):
        _check_range(device, f"devices[{index}]", origin)
        if ":" not in device.id:
            raise ConfigError(
                f"{origin}: devices[{index}].id: {device.id!r} is not `<driver>:<index>`, such as 'cpu:0'"
            )
    if config.metrics.listen:
        _check_listen(config.metrics.listen, origin)
    ids = [device.id for device in config.devices]
    if duplicates := sorted({name for name in ids if ids.count(name) > 1}):
        raise ConfigError(f"{origin}: device {duplicates[0]!r} is configured twice")
    return config


def _check_listen(text: str, origin: str) -> None:
    try:
        loopback_address(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: metrics.listen: {error}", hint='write it as "127.0.0.1:9464"') from error


def _check_together(config: Config, origin: str) -> None:
    """Refuse values that do not go together. Only for a whole: each source may hold one of them."""
    buffer, message = config.batching.max_stream_buffer, config.protocol.max_message
    if buffer > message:
        raise ConfigError(
            f"{origin}: batching.max_stream_buffer is {_as_text(buffer, 'bytes')}, more than protocol.max_message, "
            f"{_as_text(message, 'bytes')}: what waited for a reader would not fit into one message",
            hint="lower the one, or raise the other",
        )


def _convert(section: Any, table: Any, origin: str) -> None:
    if not isinstance(table, dict):
        return  # `from_mapping` says what was expected.
    values = cast("dict[str, Any]", table)
    for key, field in _fields(section).items():
        text = values.get(key)
        parse = {"bytes": parse_bytes, "seconds": parse_seconds}.get(field.metadata["unit"])
        if parse is not None and isinstance(text, str):
            try:
                values[key] = parse(text)
            except ValueError as error:
                raise ConfigError(f"{origin}: {key}: {error}") from error


def _check_range(settings: Any, path: str, origin: str) -> None:
    for key, field in _fields(type(settings)).items():
        minimum, value = field.metadata["minimum"], getattr(settings, key)
        if minimum is not None and not value >= minimum:
            raise ConfigError(
                f"{origin}: {path}.{key} must be at least {minimum:g} {field.metadata['unit']}, got {value}",
                hint=f"{key}: {field.metadata['reason']}",
            )


def _fields(section: Any) -> "dict[str, dataclasses.Field[Any]]":
    return {field.name: field for field in dataclasses.fields(section)}


def _unknown(what: str, name: str, valid: tuple[str, ...], origin: str) -> ConfigError:
    near = difflib.get_close_matches(name, valid, n=1)
    suggestion = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(valid)}"
    form = f"; a variable is named {_PREFIX}SECTION__KEY" if origin.startswith("env") else ""
    hint = f"`teengine config show` lists every key{form}"
    return ConfigError(f"{origin}: unknown {what} {name!r}{suggestion}", hint=hint)


def _items(config: Config, origins: Mapping[str, str]) -> tuple[ConfigItem, ...]:
    items: list[ConfigItem] = []
    for section in _SECTIONS:
        settings = getattr(config, section)
        for key, field in _fields(type(settings)).items():
            dotted = f"{section}.{key}"
            text = _as_text(getattr(settings, key), field.metadata["unit"])
            doc = f"{field.metadata['reason']} ({field.metadata['unit']})"
            items.append(ConfigItem(key=dotted, value=text, origin=origins.get(dotted, "default"), doc=doc))
    for index, device in enumerate(config.devices):
        text = ", ".join(f"{key} = {value}" for key, value in to_mapping(device).items())
        doc = DeviceSettings.__doc__ or ""
        items.append(ConfigItem(key=f"devices[{index}]", value=text, origin=origins["devices"], doc=doc))
    return tuple(items)


def _as_text(value: Any, unit: str) -> str:
    if unit == "bytes":
        factor, name = next((item for item in _EXACT_SIZES if value % item[0] == 0 and value), (1, "B"))
        return f"{value // factor}{name}"
    if unit == "seconds":
        return f"{value:g}s"
    if unit == "mode":
        return f"0o{value:o}"
    return str(to_mapping(value))
