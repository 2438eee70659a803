"""The devices of this host: as configured, or as the drivers find them where nothing is configured."""

import logging
import os
from collections.abc import Mapping

from teengined.core.device import DeviceDescription, DeviceSpec
from teengined.core.errors import ConfigError
from teengined.core.memory_limits import HostMemory
from teengined.interfaces.registry import PluginRegistry
from teengined.service.budgets import fitted_specs, host_pool_budget
from teengined.service.settings import Config, DeviceSettings

__all__ = ["describe_devices", "resolve_devices", "resolve_host_pool"]

logger = logging.getLogger(__name__)

# A CPU device shares the host's memory with everything else; another device's memory is mostly for us.
_CPU_SHARE = 0.5
_DEVICE_SHARE = 0.9


def describe_devices(registry: PluginRegistry, drivers: tuple[str, ...]) -> dict[str, DeviceDescription]:
    """Return what the named drivers find, by device id. Tens of milliseconds; opens nothing."""
    installed = registry.drivers()
    usable = [installed[name] for name in drivers if name in installed and installed[name].availability().available]
    return {description.id: description for driver in usable for description in driver.discover()}


def resolve_devices(
    config: Config, registry: PluginRegistry, found: Mapping[str, DeviceDescription], memory: HostMemory
) -> tuple[DeviceSpec, ...]:
    """Return the devices that the daemon owns; their budgets fit into what `memory` allows.

    Raises:
        ConfigError: a configured device's driver is not installed, there is no device at all, or no memory for one.
    """
    specs, notes = fitted_specs(_wanted(config, registry, found), memory)
    for note in notes:
        logger.warning("%s", note)
    return specs


def resolve_host_pool(config: Config, specs: tuple[DeviceSpec, ...], memory: HostMemory) -> int:
    """Return the most that the pool of host memory may hold beside these devices, within what `memory` allows."""
    num_bytes, note = host_pool_budget(config.host.memory, specs, memory)
    if note:
        logger.warning("%s", note)
    return num_bytes


def _wanted(config: Config, registry: PluginRegistry, found: Mapping[str, DeviceDescription]) -> tuple[DeviceSpec, ...]:
    if config.devices:
        return tuple(_configured(settings, registry) for settings in config.devices)
    if not found:
        raise ConfigError(
            "no driver finds a device, and none is configured",
            hint='add a table to the configuration: [[devices]] with id = "cpu:0" and memory = "8GiB"',
        )
    return tuple(_discovered(description) for description in found.values())


def _configured(settings: DeviceSettings, registry: PluginRegistry) -> DeviceSpec:
    driver = settings.id.partition(":")[0]
    registry.driver(driver)
    if not settings.memory:
        raise ConfigError(f"device {settings.id} has no memory budget", hint='write memory = "8GiB"')
    return DeviceSpec(
        id=settings.id,
        driver=driver,
        memory_bytes=settings.memory,
        threads=settings.threads or len(settings.cores) or _num_cores(),
        cores=settings.cores,
        is_locked=settings.lock,
    )


def _discovered(description: DeviceDescription) -> DeviceSpec:
    is_cpu = description.driver == "cpu"
    share = _CPU_SHARE if is_cpu else _DEVICE_SHARE
    return DeviceSpec(
        id=description.id,
        driver=description.driver,
        memory_bytes=int(description.total_memory_bytes * share),
        threads=_num_cores() if is_cpu else 1,
    )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
