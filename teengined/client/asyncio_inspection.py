"""What the asyncio client asks of the daemon itself, rather than of its models."""

from teengined import __version__
from teengined.client.asyncio_connection import AsyncConnection
from teengined.protocol import messages as wire

__all__ = ["AsyncInspection"]


class AsyncInspection(AsyncConnection):
    """A connection with the verbs that only look at the daemon."""

    async def hello(self) -> wire.Welcome:
        """Return the daemon's version, host, process, and the largest message that it takes."""
        return await self._call(wire.Hello(client=f"teengined.client {__version__}"), wire.Welcome)

    async def plugins(self) -> wire.PluginList:
        """Return the installed plugins."""
        return await self._call(wire.ListPlugins(), wire.PluginList)

    async def config(self) -> wire.ConfigReply:
        """Return the running configuration and where each value came from."""
        return await self._call(wire.ShowConfig(), wire.ConfigReply)

    async def metrics(self) -> wire.Metrics:
        """Return the daemon's counters, gauges and histograms, as values and as OpenMetrics text."""
        return await self._call(wire.GetMetrics(), wire.Metrics)
