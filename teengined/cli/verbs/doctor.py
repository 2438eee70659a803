"""`teengine doctor`: is this host fit, and if not, what mends it."""

import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from teengined import __version__
from teengined.cli.findings import (
    Finding,
    HostReadings,
    Level,
    device_findings,
    disk_findings,
    host_findings,
    kernel_finding,
    library_findings,
    profile_findings,
)
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.loading import progress_step
from teengined.cli.output import Listing, OutputFormat, output_options, write_listing
from teengined.cli.places import store_directory
from teengined.cli.progress import open_progress
from teengined.core.errors import ConfigError, DaemonUnreachable, TeengineError
from teengined.service.host import available_memory_bytes

__all__ = ["command", "finding_lines"]

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "pyzmq", "msgpack", "pluggy")
_COLOURS = {Level.OK: "\x1b[32m", Level.WARN: "\x1b[33m", Level.FAIL: "\x1b[31m"}
_RESET = "\x1b[0m"


@click.command("doctor", cls=Verb, short_help="Check this host and say how to mend what is wrong.")
@click.option("--refresh", is_flag=True, help="Measure devices and disk again.")
@click.option("--quick", is_flag=True, help="Do not ask for measurements.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL)
@click.pass_obj
def command(invocation: Invocation, refresh: bool, quick: bool, output: OutputFormat) -> None:
    """Check libraries, limits, disk, configuration, daemon, devices and what they were measured to do.

    Devices that were never measured are measured now, which takes a while. Exits with 1 where a check fails.
    """
    readings = _read_host(_store(invocation))
    findings = [*library_findings(_versions()), *_python(), _kernels(), *host_findings(readings), *_configuration()]
    told = list(_daemon(invocation, readings.memory_bytes))
    findings += told
    if not quick and told[0].level is not Level.FAIL:
        findings += _profiles(invocation, refresh)
    if output is OutputFormat.TABLE:
        lines = finding_lines(findings, colour=invocation.uses_colour(sys.stdout))
        sys.stdout.writelines(f"{line}\n" for line in lines)
    else:
        write_listing(Listing(kind="doctor", items=findings, columns=(), name=lambda item: item.check), output)
    if any(finding.level is Level.FAIL for finding in findings):
        raise click.exceptions.Exit(1)


def finding_lines(findings: list[Finding], *, colour: bool) -> Iterator[str]:
    """Yield `ok    check  text`, and below it what mends it."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = f"{finding.level:<4}"
        if colour:
            level = f"{_COLOURS[finding.level]}{level}{_RESET}"
        yield f"{level}  {finding.check:<{width}}  {finding.text}"
        if finding.remedy:
            yield f"      {'':<{width}}  hint: {finding.remedy}"


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    return versions


def _python() -> Iterator[Finding]:
    text = f"Python {platform.python_version()} on {platform.system()} {platform.release()}, teengine {__version__}"
    yield Finding(check="python", level=Level.OK, text=text)


def _kernels() -> Finding:
    """Say whether CPU workers have compiled kernels; compiles them, as a worker would."""
    from teengined.native.compiler import CompilerMissing, compiled_library, processor_kernels

    library, problem = None, ""
    try:
        library = compiled_library()
    except CompilerMissing as error:
        problem = str(error)
    return kernel_finding(library, processor_kernels(), problem)


def _store(invocation: Invocation) -> Path:
    try:
        return store_directory(invocation)
    except ConfigError:
        return Path.home()  # `_configuration` reports what is wrong.


def _read_host(store: Path) -> HostReadings:
    shared = Path("/dev/shm")  # noqa: S108 - only its free space is read
    existing = next(parent for parent in (store, *store.parents) if parent.exists())
    return HostReadings(
        open_files_limit=_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        shared_memory_bytes=shutil.disk_usage(shared).free if shared.is_dir() else None,
        store=str(store),
        store_free_bytes=shutil.disk_usage(existing).free,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        available_memory_bytes=available_memory_bytes(),
    )


def _limit(value: int) -> int:
    return sys.maxsize if value == resource.RLIM_INFINITY else value


def _configuration() -> Iterator[Finding]:
    from teengined.service.config import ConfigSources, load_config

    try:
        items = load_config(ConfigSources()).items
    except ConfigError as error:
        yield Finding(check="configuration", level=Level.FAIL, text=error.message, remedy=error.hint)
        return
    changed = sum(item.origin != "default" for item in items)
    yield Finding(check="configuration", level=Level.OK, text=f"valid, {changed} of {len(items)} settings changed")


def _daemon(invocation: Invocation, memory_bytes: int) -> Iterator[Finding]:
    try:
        with invocation.client() as client:
            status = client.status(placements=False)
    except DaemonUnreachable as error:
        yield Finding(check="daemon", level=Level.FAIL, text=error.message, remedy=error.hint)
        return
    text = f"{status.version}, pid {status.pid}, {status.state}"
    same = status.version == __version__
    yield Finding(
        check="daemon",
        level=Level.OK if same else Level.WARN,
        text=text if same else f"{text}; this command is {__version__}",
        remedy="" if same else "systemctl restart teengined",
    )
    yield from device_findings(status.devices, memory_bytes)
    yield from disk_findings(status.disks)


def _profiles(invocation: Invocation, refresh: bool) -> Iterator[Finding]:
    progress = open_progress()
    try:
        with invocation.client() as client:
            profiles = client.measure(refresh, on_progress=lambda told: progress.show(progress_step(told, "")))
    except TeengineError as error:
        remedy = error.hint or "teengine doctor --refresh"
        yield Finding(check="measuring", level=Level.FAIL, text=error.message, remedy=remedy)
        return
    finally:
        progress.close()
    yield from profile_findings(profiles)
