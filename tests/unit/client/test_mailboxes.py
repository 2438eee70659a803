import pytest

from teengined.client.mailboxes import Mailboxes, error_of, is_final
from teengined.core.errors import InternalError, QueueFull, WorkerLost
from teengined.protocol.codec import Envelope
from teengined.protocol.messages import Accepted, Done, ErrorReply, LoadProgress

PROGRESS = LoadProgress(phase="load", done=1, total=2)


def envelope(correlation: int, message) -> Envelope:
    return Envelope(correlation=correlation, message=message)


def test_replies_find_their_call_in_order():
    mail = Mailboxes()
    first, second = mail.open(), mail.open()

    for correlation, message in ((second, Done()), (first, PROGRESS), (first, Done())):
        mail.deliver(envelope(correlation, message))

    assert [mail.take(first), mail.take(first), mail.take(first)] == [PROGRESS, Done(), None]
    assert mail.take(second) == Done()


def test_reply_to_a_closed_call_is_dropped():
    mail = Mailboxes()
    correlation = mail.open()
    mail.close(correlation)

    mail.deliver(envelope(correlation, Done()))

    assert mail.take(correlation) is None


def test_error_becomes_the_class_that_its_code_names():
    reply = ErrorReply(code="queue_full", message="full", hint="later", retryable=True, retry_after_seconds=2.5)

    error = error_of(reply)

    assert isinstance(error, QueueFull)
    assert (error.message, error.hint, error.retry_after_seconds) == ("full", "later", 2.5)


def test_unknown_code_is_an_internal_error():
    assert isinstance(error_of(ErrorReply(code="new", message="m", hint="", retryable=False)), InternalError)


def test_stream_that_nobody_reads_is_cut_with_an_error():
    mail = Mailboxes(limit=2)
    correlation = mail.open()

    for _ in range(5):
        mail.deliver(envelope(correlation, PROGRESS))

    assert [mail.take(correlation), mail.take(correlation)] == [PROGRESS, PROGRESS]
    with pytest.raises(QueueFull):
        mail.take(correlation)
    assert mail.take(correlation) is None


def test_lost_connection_ends_every_open_call():
    mail = Mailboxes()
    calls = [mail.open(), mail.open()]

    mail.fail_all(WorkerLost("gone"))

    for correlation in calls:
        with pytest.raises(WorkerLost):
            mail.take(correlation)


def test_streamed_messages_do_not_end_a_call():
    assert not is_final(PROGRESS)
    assert not is_final(Accepted(request_id="a", num_prompt_tokens=1, context_tokens=2))
    assert is_final(Done())
