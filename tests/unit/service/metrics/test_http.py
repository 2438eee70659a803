import pytest

from teengined.service.metrics.http import answer_to, loopback_address, response


def never() -> str:
    raise AssertionError("nobody asked for metrics")


@pytest.mark.parametrize("line", ["GET /metrics HTTP/1.1", "GET /metrics HTTP/1.0", "GET /metrics?a=b HTTP/1.1"])
def test_metrics_are_answered_as_openmetrics(line: str):
    page = answer_to(f"{line}\r\nHost: here\r\n\r\n".encode(), lambda: "thing 1\n# EOF\n")

    head, _, body = response(page).partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8" in head.splitlines()
    assert f"Content-Length: {len(body)}".encode() in head.splitlines()
    assert body == b"thing 1\n# EOF\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET http://here/metrics HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", 405),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 505),
        (b"GET /metrics HTTP/9\r\n\r\n", 505),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET  HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET /metrics \xff\xfe\r\n\r\n", 400),
    ],
)
def test_anything_else_is_refused_and_costs_nothing(head: bytes, status: int):
    page = answer_to(head, never)

    assert page.status == status
    assert page.allow == ("GET" if status == 405 else "")
    assert response(page).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("127.8.9.1:1", ("127.8.9.1", 1)),
        ("[::1]:9464", ("::1", 9464)),
        ("localhost:0", ("127.0.0.1", 0)),
    ],
)
def test_loopback_addresses_are_taken(text: str, address: tuple[str, int]):
    assert loopback_address(text) == address


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0.0.0.0:9464", "can be reached from other hosts"),
        ("[::]:9464", "can be reached from other hosts"),
        ("192.168.1.5:9464", "can be reached from other hosts"),
        ("[::ffff:192.168.1.5]:9464", "can be reached from other hosts"),
        ("[::1%lo]:9464", "can be reached from other hosts"),
        ("example.org:9464", "is no address"),
        (":9464", "is no address"),
        ("127.0.0.1", "does not end with a port"),
        ("127.0.0.1:", "does not end with a port"),
        ("127.0.0.1:65536", "does not end with a port"),
        ("127.0.0.1:-1", "does not end with a port"),
        ("127.0.0.1:٣", "does not end with a port"),
        ("9464", "is no address"),
    ],
)
def test_other_addresses_are_refused_with_the_reason(text: str, told: str):
    with pytest.raises(ValueError, match=told):
        loopback_address(text)
