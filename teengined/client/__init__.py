"""The client library: `Client` blocks, `AsyncClient` is for asyncio; both speak to the daemon of this host."""

from typing import TYPE_CHECKING, Any

from teengined.client.answer import AnswerEvent
from teengined.client.blocking import Client
from teengined.client.endpoint import default_endpoint

if TYPE_CHECKING:
    from teengined.client.asynchronous import AsyncClient

__all__ = ["AnswerEvent", "AsyncClient", "Client", "default_endpoint"]


def __getattr__(name: str) -> Any:
    """Import asyncio only for those who ask for it; the command line does not."""
    if name == "AsyncClient":
        from teengined.client.asynchronous import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
