import os
import signal

import pytest

from teengined.cli.interrupts import Interrupts


def taken(*steps: str) -> list[str]:
    """Take the steps; return those that were taken before `KeyboardInterrupt` came, and `raised` where it did."""
    interrupts, done = Interrupts(), list[str]()
    actions = {
        "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
        "hold": interrupts.hold,
        "open": interrupts.open,
        "close": interrupts.close,
    }
    with interrupts:
        for step in steps:
            try:
                actions[step]()
            except KeyboardInterrupt:
                done.append("raised")
            else:
                done.append(step)
    return done


def test_an_interrupt_waits_until_the_request_has_a_name():
    assert taken("hold", "interrupt", "open") == ["hold", "interrupt", "raised"]


def test_an_interrupt_comes_at_once_where_the_request_has_a_name():
    assert taken("hold", "open", "interrupt") == ["hold", "open", "raised"]


def test_a_second_interrupt_does_not_wait():
    assert taken("hold", "interrupt", "interrupt") == ["hold", "interrupt", "raised"]


def test_what_unwinds_is_not_interrupted_again():
    assert taken("open", "interrupt", "interrupt") == ["open", "raised", "interrupt"]


@pytest.mark.parametrize("before", [(), ("hold", "interrupt", "close"), ("open", "close")])
def test_between_prompts_and_answers_an_interrupt_is_ignored_and_forgotten(before: tuple[str, ...]):
    assert taken(*before, "interrupt", "open") == [*before, "interrupt", "open"]


def test_interrupts_are_what_they_were_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before

    assert signal.getsignal(signal.SIGINT) is before
