"""Every installed driver against the contract. One whose devices are not here is skipped with its reason."""

import pytest

from teengined.interfaces.driver import Driver
from teengined.interfaces.registry import PluginRegistry
from tests.conformance.driver_contract import DriverContract

DRIVERS = PluginRegistry.load().drivers()


class TestDriver(DriverContract):
    @pytest.fixture(params=list(DRIVERS))
    def driver(self, request: pytest.FixtureRequest) -> Driver:
        return DRIVERS[request.param]
