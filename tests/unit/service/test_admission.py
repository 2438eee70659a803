import math
from dataclasses import replace

import msgpack
import pytest

from teengined.core.errors import ContextTooLong, RequestError
from teengined.core.records import to_mapping
from teengined.core.request import ChatMessage, TokenLogprobs
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Embed, Generate, Score
from teengined.service.admission import (
    ModelLimits,
    cache_salt_of,
    check_embed,
    check_generate,
    check_prompt,
    check_score,
    check_told,
    may_act_for,
    owner_of,
    timeout_of,
)

LIMITS = ModelLimits(
    model="m", vocab_size=10, context_tokens=100, max_choices=4, max_inputs=3, max_seconds=60.0, max_reply_bytes=10_000
)
HELLO = Generate(model="m", prompt="hello")


def sampling(**fields) -> Generate:
    return replace(HELLO, sampling=SamplingParams(**fields))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Generate(model="m"), "exactly one of"),
        (replace(HELLO, token_ids=(1,)), "got 2"),
        (Generate(model="m", messages=(ChatMessage(role="user", content=""),), prompt=""), "got 2"),
        (replace(HELLO, tools=("{}",)), "for messages"),
        (replace(HELLO, template_options={"a": "1"}), "for messages"),
        (replace(HELLO, priority=101), "between -100 and 100"),
        (replace(HELLO, priority=-101), "between -100 and 100"),
        (replace(HELLO, credits=-1), "credits"),
        (replace(HELLO, client_id="x" * 129), "client_id has at most 128"),
        (replace(HELLO, cache_salt="x" * 129), "cache_salt has at most 128"),
        (sampling(num_choices=5), "the limit is 4"),
        (sampling(logit_bias=((10, 1.0),)), "logit_bias: token ids must be between 0 and 9, got 10"),
        (sampling(allowed_token_ids=(10,)), "allowed_token_ids.*got 10"),
        (sampling(banned_token_ids=(3, 99)), "banned_token_ids.*got 99"),
        (sampling(stop_token_ids=(10,)), "stop_token_ids.*got 10"),
        (sampling(allowed_token_ids=(1, 2), banned_token_ids=(2, 1, 3)), "every allowed token is banned"),
        (sampling(banned_token_ids=tuple(range(10))), "every token"),
    ],
)
def test_request_that_cannot_succeed_is_refused_by_name(request_: Generate, told: str):
    with pytest.raises(RequestError, match=told):
        check_generate(request_, LIMITS)


@pytest.mark.parametrize(
    "request_",
    [
        HELLO,
        Generate(model="m", prompt=""),
        replace(HELLO, priority=-100, credits=1, client_id="x" * 128),
        sampling(num_choices=4, logit_bias=((9, -100.0),), allowed_token_ids=(0, 9), banned_token_ids=(0,)),
    ],
)
def test_request_at_the_limits_passes(request_: Generate):
    check_generate(request_, LIMITS)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error", "told"),
    [
        ((), 1, RequestError, "no tokens"),
        ((1, 10), 1, RequestError, "between 0 and 9, got 1 to 10"),
        ((-1,), 1, RequestError, "between 0 and 9"),
        ((1,) * 60, 41, ContextTooLong, "60 prompt tokens and max_tokens 41 make 101"),
        ((1,) * 101, 0, ContextTooLong, "101 prompt tokens"),
    ],
)
def test_prompt_that_does_not_fit_is_refused(prompt, max_tokens, error, told):
    with pytest.raises(error, match=told):
        check_prompt(prompt, max_tokens, LIMITS)


@pytest.mark.parametrize(("num_prompt", "max_tokens", "hint"), [(60, 90, "at most 40 tokens"), (100, 5, "shorten")])
def test_context_error_says_what_would_fit(num_prompt: int, max_tokens: int, hint: str):
    with pytest.raises(ContextTooLong) as caught:
        check_prompt((1,) * num_prompt, max_tokens, LIMITS)

    assert hint in caught.value.hint


def test_prompt_that_fills_the_context_passes():
    check_prompt((1,) * 60, 40, LIMITS)
    check_prompt((1,) * 100, 0, LIMITS)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Score(model="m", context="a"), "no continuation"),
        (Score(model="m", context="a", continuation_ids=(1,)), "both be text, or both"),
        (Score(model="m", continuation="b", context_ids=(1,)), "both be text, or both"),
        (Score(model="m", context_ids=(1,)), "no continuation"),
        (Score(model="m", continuation_ids=(1,)), "context_ids is empty"),
        (Score(model="m", context="a", continuation="b", top=21), "between 0 and 20"),
        (Score(model="m", context="a", continuation="b", top=-1), "between 0 and 20"),
    ],
)
def test_score_that_means_nothing_is_refused(request_: Score, told: str):
    with pytest.raises(RequestError, match=told):
        check_score(request_)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Embed(model="m"), "exactly one of"),
        (Embed(model="m", texts=("a",), token_ids=((1,),)), "exactly one of"),
        (Embed(model="m", texts=("a",) * 4), "4 inputs were sent; the limit is 3"),
    ],
)
def test_embed_that_means_nothing_is_refused(request_: Embed, told: str):
    with pytest.raises(RequestError, match=told):
        check_embed(request_, LIMITS)


@pytest.mark.parametrize(("wanted", "given"), [(0.0, 60.0), (5.0, 5.0), (1e9, 60.0)])
def test_time_is_what_was_asked_for_and_no_more_than_allowed(wanted: float, given: float):
    assert timeout_of(wanted, LIMITS) == given


@pytest.mark.parametrize("wanted", [-1.0, math.nan, math.inf])
def test_time_that_is_none_is_refused(wanted: float):
    with pytest.raises(RequestError, match="timeout_seconds"):
        timeout_of(wanted, LIMITS)


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("localhost:1000:1000:77", "uid:1000"),
        ("localhost:0:0:1", "uid:0"),
        ("", "client:6964"),
        ("127.0.0.1", "client:6964"),
        ("localhost:root:0:1", "client:6964"),
    ],
)
def test_owner_is_the_user_that_the_kernel_names(address: str, owner: str):
    assert owner_of(address, b"id") == owner


def test_salts_of_different_owners_and_names_never_meet():
    pairs = [("a", "b"), ("ab", ""), ("", "ab"), ("a", "bc"), ("ab", "c")]

    assert len({cache_salt_of(owner, salt) for owner, salt in pairs}) == len(pairs)
    assert cache_salt_of("a", "b") == cache_salt_of("a", "b")


def test_salt_of_a_user_is_the_same_in_every_daemon_and_that_of_a_connection_is_not(monkeypatch: pytest.MonkeyPatch):
    before = [cache_salt_of(owner, "") for owner in ("uid:7", "client:00ab")]
    monkeypatch.setattr("teengined.service.admission._THIS_PROCESS", b"another")
    after = [cache_salt_of(owner, "") for owner in ("uid:7", "client:00ab")]

    assert before[0] == after[0]
    assert before[1] != after[1]


def test_what_is_told_of_a_prompt_must_fit_into_a_reply():
    check_told(250, 0, LIMITS)
    check_told(29, 20, LIMITS)

    with pytest.raises(RequestError, match="of 30 given tokens, each with 20 alternatives, may take 10200 bytes"):
        check_told(30, 20, LIMITS)


def test_what_was_let_pass_fits_on_the_wire():
    told = TokenLogprobs(token_id=2**31 - 1, logprob=-1.5, top=((2**31 - 1, -1.5),) * 20)
    bound = 1000 * (40 + 20 * 15)

    assert len(msgpack.packb(to_mapping((told,) * 1000))) <= bound + 5


@pytest.mark.parametrize(
    ("caller", "may"), [("uid:7", True), ("uid:0", True), ("uid:500", True), ("uid:8", False), ("client:00", False)]
)
def test_who_may_act_for_user_7(caller: str, may: bool):
    assert may_act_for(caller, "uid:7", daemon_uid=500) is may
