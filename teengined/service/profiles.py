"""What this host was measured to do, kept in the state directory.

Measuring needs torch, so a process of its own does it, one at a time. A profile is valid for the devices as they are
configured, the disk it was measured on and the library versions; anything else is measured anew.
"""

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from teengined.core.device import DeviceDescription, DeviceSpec
from teengined.core.errors import DeadlineExceeded, DriverError, error_class
from teengined.core.records import RecordError, from_mapping, to_mapping
from teengined.protocol.messages import LoadProgress, Profiles
from teengined.service.settings import PlanningSettings

__all__ = ["ProfileStore"]

logger = logging.getLogger(__name__)

OnProgress = Callable[[LoadProgress], None]
# One line of the measuring process: the profiles of a few dozen devices.
_MAX_LINE_BYTES = 4 << 20
_MAX_ERROR_CHARACTERS = 2000


@dataclass(slots=True, kw_only=True, eq=False)
class ProfileStore:
    """Cached profiles of this host's devices."""

    directory: Path
    """For the cache."""
    measured_directory: Path
    """On the disk whose speed counts: where packages are."""
    specs: tuple[DeviceSpec, ...]
    descriptions: Mapping[str, DeviceDescription]
    settings: PlanningSettings
    environment: Mapping[str, str]
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get(self, on_progress: OnProgress, *, refresh: bool = False) -> Profiles:
        """Return the profiles, measuring where there are none yet or where `refresh` asks for it.

        Raises:
            DriverError: measuring failed; the message has the process's last words.
            DeadlineExceeded: it took longer than `planning.measure_timeout`.
        """
        async with self._lock:
            cached = None if refresh else self._read()
            if cached is not None:
                return cached
            profiles = await self._measure(on_progress)
            self._write(profiles)
            return profiles

    def _path(self) -> Path:
        identity = {
            "devices": [to_mapping(spec) for spec in self.specs],
            "versions": sorted({version for item in self.descriptions.values() for version in item.library_versions}),
            "torch": importlib.metadata.version("torch"),
            "directory": str(self.measured_directory),
        }
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()
        return self.directory / f"{digest}.json"

    def _read(self) -> Profiles | None:
        path = self._path()
        try:
            return from_mapping(Profiles, json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("cached profile %s is unreadable and measured anew: %s", path.name, error)
            return None

    def _write(self, profiles: Profiles) -> None:
        path = self._path()
        temporary = path.with_suffix(".new")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(to_mapping(profiles), indent=1), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            logger.warning("the profile is not kept: %s", error)

    async def _measure(self, on_progress: OnProgress) -> Profiles:
        self.measured_directory.mkdir(parents=True, exist_ok=True)
        command = self.settings.measure_command or (sys.executable, "-P", "-m", "teengined.engine.measure")
        logger.info("measuring %s", ", ".join(spec.id for spec in self.specs))
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=_MAX_LINE_BYTES, env=dict(self.environment)
        )
        try:
            async with asyncio.timeout(self.settings.measure_timeout):
                return await self._converse(process, on_progress)
        except TimeoutError as error:
            seconds = self.settings.measure_timeout
            raise DeadlineExceeded(
                f"measuring the devices took longer than {seconds:g} s", hint="raise planning.measure_timeout"
            ) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                await process.wait()

    async def _converse(self, process: Process, on_progress: OnProgress) -> Profiles:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        request = {
            "devices": [to_mapping(spec) for spec in self.specs],
            "directory": str(self.measured_directory),
            "parent": os.getpid(),  # It ends with this process, however that ends.
        }
        process.stdin.write(json.dumps(request).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
            process.stdin.close()
        said = asyncio.create_task(_last_words(process.stderr))
        last = b""
        try:
            async for line in process.stdout:
                last = line
                _pass_on(line, on_progress)
        except ValueError as error:
            said.cancel()
            raise DriverError(f"measuring wrote a line of more than {_MAX_LINE_BYTES} bytes") from error
        status = await process.wait()
        return _profiles_of(last, status, await said)


async def _last_words(stream: asyncio.StreamReader) -> str:
    words = b""
    while chunk := await stream.read(65536):
        words = (words + chunk)[-_MAX_ERROR_CHARACTERS:]
    return words.decode(errors="replace").strip()


def _event(line: bytes) -> dict[str, Any]:
    try:
        content: object = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _pass_on(line: bytes, on_progress: OnProgress) -> None:
    event = _event(line)
    done, total = event.get("done"), event.get("total")
    if isinstance(done, int) and isinstance(total, int):
        on_progress(
            LoadProgress(phase=f"measure {event.get('phase', '')}".strip(), done=done, total=total, unit="steps")
        )


def _profiles_of(line: bytes, status: int, words: str) -> Profiles:
    event = _event(line)
    if event.get("event") == "error":
        raise error_class(str(event.get("code")))(str(event.get("message")), hint=str(event.get("hint") or ""))
    if status != 0 or event.get("event") != "done":
        reason = words or f"exit status {status}"
        raise DriverError(f"measuring the devices failed: {reason}", hint="`teengine doctor` shows each device")
    try:
        return from_mapping(Profiles, {key: event.get(key) for key in ("devices", "host", "links")})
    except RecordError as error:
        raise DriverError(f"measuring the devices gave no profile: {error}") from error
