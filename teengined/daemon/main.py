"""`teengined`: from flags to a serving daemon, and from a signal to a clean end."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys

from teengined import __version__
from teengined.core.errors import TeengineError
from teengined.daemon.config import Directories, check_directories, directories_of, parse_flags, sources_of
from teengined.daemon.logs import set_up_logging
from teengined.daemon.notify import Notifier
from teengined.daemon.wiring import Daemon, Inventory, take_inventory, wire
from teengined.service.config import load_config

__all__ = ["main"]

logger = logging.getLogger("teengined")

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon and return its exit status, that of the error's class where one ends it."""
    flags = parse_flags(sys.argv[1:] if arguments is None else arguments, __version__)
    if flags.die_with_parent:
        _die_with_parent()
    try:
        loaded = load_config(sources_of(flags))
        set_up_logging(loaded.config.daemon.log_format, loaded.config.daemon.log_level)
        inventory = take_inventory(loaded)
        directories = directories_of(loaded.config)
        check_directories(directories)
        if flags.check:
            _print_check(inventory, directories)
            return 0
        asyncio.run(_run(inventory, directories))
    except TeengineError as error:
        sys.stderr.write(f"teengined: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0


async def _run(inventory: Inventory, directories: Directories) -> None:
    loop = asyncio.get_running_loop()
    draining, stopping = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (stopping if draining.is_set() else draining).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    notifier = Notifier()
    daemon = wire(inventory, directories, draining.set)
    try:
        await daemon.metrics.open()
    except BaseException:
        await daemon.close(now=True)
        raise
    serving = asyncio.create_task(daemon.server.serve())
    watchdog = asyncio.create_task(notifier.keep_watchdog())
    notifier.ready(f"listening on {daemon.endpoint}")
    logger.info("ready: pid %d listens on %s", os.getpid(), daemon.endpoint)
    waiting = asyncio.create_task(draining.wait())
    try:
        done, _ = await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        if serving in done:
            serving.result()  # a server that ended by itself failed, and systemd must hear of it
        notifier.stopping("finishing what runs")
        await _drain(daemon, stopping, inventory.loaded.config.daemon.drain_timeout)
    finally:
        for task in (waiting, watchdog, serving):
            task.cancel()
        await daemon.close(now=stopping.is_set())
        await asyncio.gather(waiting, watchdog, serving, return_exceptions=True)
        logger.info("stopped")


async def _drain(daemon: Daemon, stopping: asyncio.Event, timeout_seconds: float) -> None:
    """Wait for running answers, for the end of the drain's time, or for a second signal."""
    deployments = daemon.context.deployments
    logger.info("draining: %d answers run, %d wait", deployments.num_running, deployments.num_queued)
    drained = asyncio.create_task(deployments.drain(timeout_seconds))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait((drained, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (drained, stopped):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _print_check(inventory: Inventory, directories: Directories) -> None:
    plugins = inventory.registry.items()
    sys.stdout.write(f"configuration is valid; {len(plugins)} plugins; runtime directory {directories.runtime}\n")
    for spec in inventory.specs:
        sys.stdout.write(f"{spec.id}: {spec.memory_bytes} bytes, {spec.threads} threads\n")


def _die_with_parent() -> None:
    """Get SIGTERM when the process that started this one ends, also if it is gone already."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that started this daemon is gone")


if __name__ == "__main__":
    sys.exit(main())
