import pytest

from teengined.service.account import Account


def test_times_and_bytes_are_told_apart():
    account = Account(num_prompt_tokens=8, submitted_seconds=10.0)
    account.begin(12.0, 4)
    account.begin(13.0, 0)
    account.note_streamed(100)
    account.note_token(15.0)
    account.note_streamed(60)
    account.note_token(16.0)
    account.note_token(18.0)

    usage = account.usage(20.0, predicted_seconds=0.5, bytes_per_second=10.0)

    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (8, 4, 3)
    assert (usage.queued_seconds, usage.prefill_seconds, usage.decode_seconds) == (2.0, 3.0, 3.0)
    assert usage.streamed_bytes == 160
    assert usage.bound_seconds_per_token == pytest.approx(60 / 2 / 10)


def test_a_request_that_never_began_waited_to_its_end():
    account = Account(num_prompt_tokens=8, submitted_seconds=10.0)

    usage = account.usage(17.0, predicted_seconds=0.5, bytes_per_second=10.0)

    assert (usage.queued_seconds, usage.prefill_seconds, usage.decode_seconds) == (7.0, 0.0, 0.0)
    assert usage.bound_seconds_per_token == 0.5


def test_a_prompt_alone_was_prefilled_to_its_end():
    account = Account(num_prompt_tokens=8, submitted_seconds=10.0)
    account.begin(11.0, 0)

    assert account.usage(17.0, predicted_seconds=0.5, bytes_per_second=10.0).prefill_seconds == 6.0


def test_tokens_that_were_guessed_take_no_step_of_the_bound():
    account = Account(num_prompt_tokens=8, submitted_seconds=10.0)
    for drafted in (False, True, True, False):
        account.note_token(15.0, drafted=drafted)

    usage = account.usage(20.0, predicted_seconds=0.5, bytes_per_second=10.0)

    assert usage.accepted_tokens == 2
    assert usage.bound_seconds_per_token == 0.25
