"""What the blocking client asks of the daemon itself, rather than of its models."""

from teengined import __version__
from teengined.client.blocking_connection import BlockingConnection
from teengined.protocol import messages as wire

__all__ = ["BlockingInspection"]


class BlockingInspection(BlockingConnection):
    """A connection with the verbs that only look at the daemon."""

    def hello(self) -> wire.Welcome:
        """Return the daemon's version, host, process, and the largest message that it takes."""
        return self._call(wire.Hello(client=f"teengined.client {__version__}"), wire.Welcome)

    def plugins(self) -> wire.PluginList:
        """Return the installed plugins."""
        return self._call(wire.ListPlugins(), wire.PluginList)

    def config(self) -> wire.ConfigReply:
        """Return the running configuration and where each value came from."""
        return self._call(wire.ShowConfig(), wire.ConfigReply)

    def metrics(self) -> wire.Metrics:
        """Return the daemon's counters, gauges and histograms, as values and as OpenMetrics text."""
        return self._call(wire.GetMetrics(), wire.Metrics)
