"""Metrics over HTTP: a few connections at once, each one small request, one answer, and a bounded time for both."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

from teengined.core.errors import ConfigError
from teengined.service.metrics.http import PATH, Page, answer_to, loopback_address, response
from teengined.service.seldom import Seldom
from teengined.service.settings import MetricsSettings

__all__ = ["MetricsListener"]

logger = logging.getLogger(__name__)

_END = b"\r\n\r\n"


class MetricsListener:
    """Serves a page that is made anew for each request. Listens on loopback, and only where it is told to."""

    def __init__(self, settings: MetricsSettings, metrics: Callable[[], str]) -> None:
        """Nothing listens before `open`."""
        self._settings = settings
        self._metrics = metrics
        self._seldom = Seldom(logger, logging.INFO)
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        """Oldest first."""

    @property
    def port(self) -> int:
        """Where it listens; 0 where it does not."""
        return self._server.sockets[0].getsockname()[1] if self._server is not None else 0

    async def open(self) -> None:
        """Listen, if an address is configured.

        Raises:
            ConfigError: the address cannot be had.
        """
        if not self._settings.listen:
            return
        host, port = loopback_address(self._settings.listen)
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=self._settings.max_request)
        except OSError as error:
            raise ConfigError(
                f"metrics.listen: cannot listen on {self._settings.listen}: {error.strerror or error}",
                hint="choose another port, or find who has it with `ss -ltnp`",
            ) from error
        logger.info("metrics on http://%s:%d%s", f"[{host}]" if ":" in host else host, self.port, PATH)

    async def close(self) -> None:
        """Stop listening, and cut off who is still there."""
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection. One too many takes the place of the oldest, which had more time than it takes."""
        if len(self._connections) >= self._settings.max_connections:
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).abort()
            oldest.cancel()
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[task] = writer.transport
        task.add_done_callback(lambda task: self._connections.pop(task, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._settings.timeout):
                page = await self._page(reader)
                if page is not None:
                    writer.write(response(page))
                    writer.close()
                    await writer.wait_closed()
        except (TimeoutError, OSError) as error:
            self._seldom.tell("a connection for metrics was too slow, or went away", str(error))
        except Exception:  # The edge: a mistake of ours costs one scrape.
            logger.exception("metrics could not be served")
        finally:
            writer.transport.abort()

    async def _page(self, reader: asyncio.StreamReader) -> Page | None:
        """Return what to answer; None to one who says nothing whole."""
        try:
            head = await reader.readuntil(_END)
        except asyncio.LimitOverrunError:
            return Page(
                status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                text=f"line and headers may have {self._settings.max_request} bytes\n",
            )
        except asyncio.IncompleteReadError:
            return None
        return answer_to(head, self._metrics)
