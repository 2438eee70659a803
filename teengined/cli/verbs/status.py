"""`teengine status`: the one screen of truth."""

import sys
import time
from collections.abc import Iterator

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import Column, OutputFormat, output_options, table_lines, write_json
from teengined.cli.prose import age
from teengined.cli.verbs.ps import COLUMNS as MODEL_COLUMNS
from teengined.core.quantities import format_bytes, format_seconds
from teengined.protocol.messages import DeviceStatus, HostPoolStatus, Status

__all__ = ["command", "status_lines"]

_GREEN, _YELLOW, _RESET = "\x1b[32m", "\x1b[33m", "\x1b[0m"

DEVICE_COLUMNS: tuple[Column[DeviceStatus], ...] = (
    Column(header="DEVICE", cell=lambda device: device.spec.id),
    Column(header="NAME", cell=lambda device: device.description.name if device.description else ""),
    Column(header="BUDGET", cell=lambda device: format_bytes(device.spec.memory_bytes), right=True),
    Column(header="PLANNED", cell=lambda device: format_bytes(device.planned_bytes), right=True),
    Column(header="WORKER", cell=lambda device: str(device.worker_pid or ""), right=True),
    Column(header="STATE", cell=lambda device: f"{device.state}: {device.problem}" if device.problem else device.state),
)


@click.command("status", cls=Verb, short_help="Show the daemon, its devices and its models.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON)
@click.pass_obj
def command(invocation: Invocation, output: OutputFormat) -> None:
    """Show the daemon, its devices, its loaded models and its queue. Exits with 3 where no daemon runs."""
    with invocation.client() as client:
        status = client.status(placements=output is OutputFormat.JSON)
    if output is OutputFormat.JSON:
        write_json("status", status)
    else:
        sys.stdout.writelines(f"{line}\n" for line in status_lines(status, invocation.uses_colour(sys.stdout)))


def status_lines(status: Status, colour: bool) -> Iterator[str]:
    """Yield the screen's lines."""
    state = status.state
    if colour:
        state = f"{_GREEN if state == 'ready' else _YELLOW}{state}{_RESET}"
    yield (
        f"teengined {status.version} on {status.host}: {state}, "
        f"up {format_seconds(status.uptime_seconds)}, pid {status.pid}, {format_bytes(status.rss_bytes)} resident"
    )
    yield f"runtime directory {status.runtime_dir}"
    yield f"{_plural(status.num_models, 'package')}, {status.num_running} running, {status.num_queued} queued"
    if status.host_pool.planned_bytes:
        yield _host_pool_line(status.host_pool)
    for disk in status.disks:
        if disk.num_failures:
            when = age(disk.failed_unix_seconds, time.time())
            yield f"disk {disk.path} failed {_plural(disk.num_failures, 'time')}, last {when}: {disk.problem}"
    yield ""
    yield from table_lines(DEVICE_COLUMNS, status.devices)
    yield ""
    if status.deployments:
        yield from table_lines(MODEL_COLUMNS, status.deployments)
    else:
        yield "no model is loaded"


def _host_pool_line(pool: HostPoolStatus) -> str:
    line = f"host memory: {format_bytes(pool.planned_bytes)} of {format_bytes(pool.budget_bytes)} taken"
    shared_bytes = pool.unshared_bytes - pool.planned_bytes
    return f"{line}, {format_bytes(shared_bytes)} saved by sharing" if shared_bytes else line


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
