"""One HTTP request for metrics, and what is answered to it. Pure: bytes in, bytes out."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from teengined.protocol.openmetrics import CONTENT_TYPE

__all__ = ["PATH", "Page", "answer_to", "loopback_address", "response"]

PATH = "/metrics"
_TEXT = "text/plain; charset=utf-8"
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a response carries."""

    status: HTTPStatus
    text: str
    content_type: str = _TEXT
    allow: str = ""


def loopback_address(text: str) -> tuple[str, int]:
    """Return host and port of an address such as `127.0.0.1:9464`, `[::1]:9464` or `localhost:9464`.

    Raises:
        ValueError: it is none, or one that other hosts could reach.
    """
    name, _, number = text.rpartition(":")
    if not (number.isascii() and number.isdigit() and int(number) <= _MAX_PORT):
        raise ValueError(f"{text!r:.80} does not end with a port between 0 and {_MAX_PORT}")
    host = "127.0.0.1" if name == "localhost" else name.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(f"{name!r:.80} is no address: an IPv4 one, an IPv6 one in brackets, or localhost") from error
    if not address.is_loopback or "%" in host:
        raise ValueError(f"{host} can be reached from other hosts, and metrics have no key; only loopback is served")
    return host, int(number)


def answer_to(head: bytes, metrics: Callable[[], str]) -> Page:
    """Return what to answer to a request's line and headers. `metrics` is asked only if they are wanted."""
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    target, _, version = rest.partition(" ")
    if not method or not target or not version.startswith("HTTP/"):
        return Page(status=HTTPStatus.BAD_REQUEST, text="this is no HTTP request\n")
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        return Page(status=HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, text="only HTTP/1.0 and HTTP/1.1 are spoken here\n")
    if target.partition("?")[0] != PATH:
        return Page(status=HTTPStatus.NOT_FOUND, text=f"there is only {PATH}\n")
    if method != "GET":
        return Page(status=HTTPStatus.METHOD_NOT_ALLOWED, text="only GET is answered\n", allow="GET")
    return Page(status=HTTPStatus.OK, text=metrics(), content_type=CONTENT_TYPE)


def response(page: Page) -> bytes:
    """Return the bytes of a response after which the connection is closed."""
    body = page.text.encode()
    lines = [
        f"HTTP/1.1 {page.status.value} {page.status.phrase}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "X-Content-Type-Options: nosniff",
    ]
    if page.allow:
        lines.append(f"Allow: {page.allow}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
