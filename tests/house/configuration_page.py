"""Writes docs/configuration.md from the settings themselves: `make docs`. A house test holds the page to this."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from teengined.core.records import to_mapping
from teengined.service.config import DEFAULT_CONF_DIR, DEFAULT_FILE
from teengined.service.settings import Config, DeviceSettings

__all__ = ["render"]

HEAD = f"""# Configuration

<!-- Made by `make docs` from teengined/service/settings.py. -->

The daemon reads `{DEFAULT_FILE}`, then every `*.toml` file in `{DEFAULT_CONF_DIR}` by name, then the
environment, then flags; later beats earlier. It reads once, at its start. An unknown key, a wrong type or a value out
of range stops it with exit status 78 and one line that names the source, the key and the nearest valid key.

`teengine config show` prints every value in force with its origin; `teengine config validate FILE` checks a file.

- In the environment a key is `TEENGINED_SECTION__KEY`, such as `TEENGINED_DAEMON__LOG_LEVEL=debug`. What is not text
  is written as in TOML: `TEENGINED_PLUGINS__BLOCKED='["null"]'`.
- Sizes are text such as `"1.5GiB"` or `"800 MB"`, or a number of bytes. Durations are text such as `"250ms"` or
  `"5m"`, or a number of seconds.

Two devices, one of them bound to two cores:

```toml
[daemon]
drain_timeout = "60s"

[[devices]]
id = "cpu:0"
memory = "2GiB"
threads = 2
cores = [0, 1]

[[devices]]
id = "cuda:0"
memory = "20GiB"
```
"""

TABLE_HEAD = "| key | unit | default | least | meaning, and why this default |\n| --- | --- | --- | --- | --- |"


def render() -> str:
    """Return the whole page."""
    sections = [
        _section(f"[{field.name}]", type(getattr(Config(), field.name)))
        for field in dataclasses.fields(Config)
        if field.name != "devices"
    ]
    return "\n".join([HEAD, *sections, _section("[[devices]]", DeviceSettings)])


def _section(name: str, settings: type) -> str:
    summary = (settings.__doc__ or "").strip().splitlines()[0]
    return "\n".join([f"## `{name}`", "", summary, "", TABLE_HEAD, *_rows(settings), ""])


def _rows(settings: type) -> Iterator[str]:
    for field in dataclasses.fields(settings):
        least = field.metadata["minimum"]
        cells = (
            f"`{field.name}`",
            field.metadata["unit"],
            f"`{_default(field)}`",
            "" if least is None else f"{least:g}",
            field.metadata["reason"].replace("|", "\\|"),
        )
        yield f"| {' | '.join(cells)} |"


def _default(field: "dataclasses.Field[Any]") -> str:
    value = to_mapping(field.default)
    if field.metadata["unit"] == "mode":
        return f"0o{value:o}"
    if field.metadata["unit"] == "bytes":
        return _size(value)
    if field.metadata["unit"] == "seconds":
        return f"{value:g}s"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _size(num_bytes: int) -> str:
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if num_bytes and num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit}"
    return str(num_bytes)


if __name__ == "__main__":
    sys.stdout.write(render())
