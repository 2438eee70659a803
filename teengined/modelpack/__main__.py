"""The converter as a program: `python -m teengined.modelpack convert|synth|verify`. Writes JSON lines to its output.

The command line and the daemon start it as a child, because they may not load torch. Each line is one event:

    {"event": "progress", "phase": …, "done": …, "total": …, "bytes_per_second": …, "eta_seconds": …}    bytes
    {"event": "done", "name": …, "path": …, …}
    {"event": "error", "code": …, "message": …, "hint": …}    and the error's exit code
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import click

from teengined.core.errors import InternalError, TeengineError
from teengined.modelpack.progress import Progress, ProgressMeter

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


class Events:
    """Writes events to what was standard output, and keeps libraries' prints out of it."""

    def __init__(self) -> None:
        """Take over standard output; whatever else prints there goes to standard error from now on."""
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one line. A reader that went away ends the process."""
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()

    def progress(self, progress: Progress) -> None:
        """Write a progress event."""
        self.send("progress", asdict(progress))


@click.group()
def commands() -> None:
    """Convert checkpoints to model packages, make synthetic ones, and verify packages."""


@commands.command()
@click.argument("reference")
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Directory of packages.")
@click.option("--name", default="", help="Name of the package; from the reference where absent.")
@click.option("--precision", default="auto", help="Precision strategy of matrices.")
@click.option("--compute-dtype", default="auto", help="fp32, bf16 or fp16.")
@click.option("--disk", "disks", type=click.Path(path_type=Path), multiple=True, help="Spread unit files over it too.")
@click.option("--budget", default="", help="Bytes of the weights: each part's precision is chosen by measured error.")
@click.option("--calibration", type=click.Path(path_type=Path), default=None, help="The text to measure errors on.")
@click.option("--cache", type=click.Path(path_type=Path), default=None, help="Where downloads are kept.")
@click.option("--blocked", multiple=True, help="Plugin (entry point or distribution) to leave out; may be repeated.")
@click.pass_obj
def convert(
    events: Events, reference: str, store: Path, cache: Path | None, blocked: tuple[str, ...], **choices: Any
) -> None:
    """Convert REFERENCE (a directory, a .gguf file, a hub id or an alias) into the store."""
    from teengined.interfaces.registry import PluginRegistry
    from teengined.modelpack.command import ConvertCommand, run_convert

    command = ConvertCommand(reference=reference, store=store, cache=cache or store / ".cache", **choices)
    events.send("done", run_convert(command, PluginRegistry.load(blocked), events.progress))


@commands.command()
@click.argument("name")
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Directory of packages.")
@click.option("--like", required=True, help="A known shape, or a config.json.")
@click.option("--parameters", default="", help="About as many, such as 1T; else as the shape has.")
@click.option("--precision", default="int8", help="Precision strategy of matrices.")
@click.option("--compute-dtype", default="auto", help="fp32, bf16 or fp16.")
@click.option("--disk", "disks", type=click.Path(path_type=Path), multiple=True, help="Spread unit files over it too.")
@click.option("--distinct", default="", help="How many bytes may differ, such as 30GB.")
@click.option("--blocked", multiple=True, help="Plugin (entry point or distribution) to leave out; may be repeated.")
@click.pass_obj
def synth(events: Events, blocked: tuple[str, ...], **choices: Any) -> None:
    """Write the package NAME with random weights into the store."""
    from teengined.interfaces.registry import PluginRegistry
    from teengined.modelpack.command import SynthCommand, run_synth

    events.send("done", run_synth(SynthCommand(**choices), PluginRegistry.load(blocked), events.progress))


@commands.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def verify(events: Events, directory: Path) -> None:
    """Compare every unit of the package in DIRECTORY with its digest."""
    from teengined.modelpack.verify import verify_package

    meter: ProgressMeter | None = None
    last = 0

    def show(done: int, total: int) -> None:
        nonlocal meter, last
        meter = meter or ProgressMeter("verify", total, report=events.progress, clock=time.monotonic)
        meter.advance(done - last)
        last = done

    manifest = verify_package(directory, show)
    events.send(
        "done", {"name": manifest.name, "path": str(directory), "num_units": len(manifest.units), "size_bytes": last}
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    events = Events()
    try:
        commands.main(args=None if arguments is None else list(arguments), standalone_mode=False, obj=events)
    except TeengineError as error:
        events.send("error", {"code": error.code, "message": error.message, "hint": error.hint})
        return error.exit_code
    except click.ClickException as error:
        events.send("error", {"code": "invalid_request", "message": error.format_message(), "hint": ""})
        return 2
    except (KeyboardInterrupt, click.Abort, BrokenPipeError):
        return 130
    except Exception as error:
        events.send("error", _internal(error))
        raise
    return 0


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no conversion outlives who wanted it."""
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(128 + signal.SIGTERM)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _internal(error: Exception) -> dict[str, str]:
    problem = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return {"code": InternalError.code, "message": problem, "hint": "this is a mistake of teengine; please report it"}


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
