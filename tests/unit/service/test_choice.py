from dataclasses import replace

from teengined.core.request import FinishReason
from teengined.protocol.worker_messages import SampledToken
from teengined.service.choice import Choice
from teengined.service.detokenizer import Detokenizer
from teengined.service.segments import SegmentDelta, open_fold
from teengined.service.stop_text import StopText


def choice(*stops: str, include: bool = False, min_tokens: int = 0) -> Choice:
    detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"))
    stop = StopText(stops, include)
    return Choice(index=0, sequence_id=1, detokenizer=detokenizer, stop=stop, min_tokens=min_tokens)


def add(made: Choice, content: bytes) -> list[str]:
    return [made.add(SampledToken(sequence_id=1, token_id=byte), silent=False).text for byte in content]


def test_stop_text_across_tokens_is_cut_off_and_its_tokens_counted():
    made = choice("END")

    assert add(made, b"ab END") == ["a", "b", " ", "", "", ""]
    assert made.stopped
    assert made.end(FinishReason.STOP) == SegmentDelta()
    assert (made.num_tokens, made.reason) == (6, FinishReason.STOP)


def test_stop_text_may_stay():
    assert add(choice("END", include=True), b"END") == ["", "", "END"]


def test_part_of_a_stop_text_is_told_at_the_end():
    made = choice("END")
    add(made, b"EN")

    assert made.end(FinishReason.LENGTH).text == "EN"
    assert made.reason is FinishReason.LENGTH


def test_code_point_that_stops_is_never_told_in_half():
    made = choice("😀")

    assert add(made, "a😀".encode()) == ["a", "", "", "", ""]
    assert made.stopped


def test_stop_text_before_the_least_number_of_tokens_is_text():
    made = choice("b", min_tokens=3)

    assert add(made, b"ab") == ["a", "b"]
    assert not made.stopped
    assert add(made, b"b") == [""]
    assert made.stopped


def test_stop_text_in_the_last_token_allowed_is_the_reason():
    made = choice("b")
    add(made, b"ab")

    made.end(FinishReason.LENGTH)

    assert made.reason is FinishReason.STOP


def test_cancelled_choice_stays_cancelled():
    made = choice("b")
    add(made, b"ab")

    made.end(FinishReason.CANCELLED)

    assert made.reason is FinishReason.CANCELLED


def test_silent_token_has_no_text():
    made = choice()

    assert made.add(SampledToken(sequence_id=1, token_id=97), silent=True) == SegmentDelta()
    assert made.num_tokens == 1


def test_reasoning_is_told_apart_and_what_waits_is_told_at_the_end():
    made = replace(choice(), segments=open_fold("hermes", "r/0", ""))
    told = [made.add(SampledToken(sequence_id=1, token_id=byte), silent=False) for byte in b"<think>so</think>hi<to"]
    told.append(made.end(FinishReason.LENGTH))

    assert "".join(delta.reasoning for delta in told) == "so"
    assert "".join(delta.text for delta in told) == "hi<to"
