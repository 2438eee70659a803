import logging

import pytest

from teengined.service.seldom import Seldom


def test_the_first_is_told_and_those_after_it_are_counted(caplog: pytest.LogCaptureFixture):
    seconds = [0.0]
    seldom = Seldom(logging.getLogger("test"), logging.INFO, seconds=10.0, clock=lambda: seconds[0])

    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            seldom.tell("a client is cut", "no ZeroMQ")
        seldom.tell("another kind")
        seconds[0] = 11.0
        seldom.tell("a client is cut", "too large")

    assert caplog.messages == [
        "a client is cut: no ZeroMQ",
        "another kind",
        "a client is cut: too large (and 999 more like it before)",
    ]
