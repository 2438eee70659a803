import pytest

from teengined.scheduler.pacing import Pacer


def pacer(stretch: float = 2.0, max_tokens: int = 512) -> Pacer:
    return Pacer(max_tokens=max_tokens, stretch=stretch)


def run(subject: Pacer, num_steps: int, *, fixed: float, per_token: float, num_decoding: int = 8) -> list[float]:
    """Let so many steps with prompts run on a machine of constant speed; return their times."""
    times: list[float] = []
    for _ in range(num_steps):
        num_prompt = subject.num_prompt_tokens(num_decoding)
        times.append(fixed + per_token * num_prompt)
        subject.learn(num_decoding, num_prompt, times[-1])
    return times


def test_prompts_have_the_whole_step_where_nothing_decodes():
    assert pacer().num_prompt_tokens(0) == 512


@pytest.mark.parametrize("per_token", [1e-5, 1e-4, 1e-3, 5e-3])
def test_steps_settle_at_the_allowed_stretch(per_token: float):
    subject = pacer()
    for _ in range(10):
        subject.learn(8, 0, 0.050)
    last = run(subject, 30, fixed=0.050, per_token=per_token)[-1]
    room = 504 * per_token
    assert last == pytest.approx(0.050 + min(0.050, room, max(0.050, 8 * per_token)), rel=0.1)


def test_where_the_weights_are_streamed_prompts_are_nearly_free_and_go_whole():
    subject = pacer()
    subject.learn(8, 0, 2.0)
    run(subject, 20, fixed=2.0, per_token=1e-3)
    assert subject.num_prompt_tokens(8) == 504


def test_one_slow_moment_does_not_stop_prompts():
    subject = pacer()
    subject.learn(8, 0, 0.050)
    run(subject, 20, fixed=0.050, per_token=1e-3)
    before = subject.num_prompt_tokens(8)
    subject.learn(8, before, 10.0)
    assert subject.num_prompt_tokens(8) >= before // 2


def test_the_least_is_never_undercut_and_the_most_never_exceeded():
    subject = pacer(max_tokens=64)
    subject.learn(4, 0, 0.001)
    run(subject, 50, fixed=0.001, per_token=1.0, num_decoding=4)
    assert subject.num_prompt_tokens(4) == 8
    assert subject.num_prompt_tokens(60) == 4
    assert subject.num_prompt_tokens(64) == 0


def test_a_small_rest_of_a_prompt_teaches_little_about_large_chunks():
    subject = pacer()
    subject.learn(8, 0, 0.050)
    run(subject, 30, fixed=0.050, per_token=1e-3)
    before = subject.num_prompt_tokens(8)
    subject.learn(8, 3, 0.053)
    assert subject.num_prompt_tokens(8) == pytest.approx(before, abs=2)


def test_times_of_other_numbers_of_rows_stand_in_for_one_that_was_not_seen():
    subject = pacer()
    subject.learn(4, 0, 0.040)
    subject.learn(0, 64, 0.100)  # A row more takes a millisecond up to 64, and what rows took in the mean beyond.
    assert subject.num_prompt_tokens(34) == pytest.approx(64 * 1.4 - 34, abs=1)
    subject.learn(0, 256, 0.292)
    assert subject.num_prompt_tokens(34) == pytest.approx(70, abs=1)


def test_a_chunk_that_went_faster_than_fewer_rows_does_not_turn_the_curve():
    subject = pacer()
    subject.learn(8, 0, 0.050)
    subject.learn(0, 100, 0.040)
    subject.learn(0, 500, 0.300)
    assert 8 <= subject.num_prompt_tokens(8) <= 504


def test_without_a_stretch_the_step_is_filled():
    assert pacer(stretch=0.0).num_prompt_tokens(8) == 504


def test_where_many_prompts_wait_and_few_sequences_decode_the_few_give_way():
    subject = pacer()
    subject.learn(8, 0, 0.050)
    run(subject, 30, fixed=0.050, per_token=1e-3)
    alone = subject.num_prompt_tokens(8, 1)
    assert subject.num_prompt_tokens(8, 4) == alone
    assert subject.num_prompt_tokens(8, 17) == pytest.approx(4 * alone, abs=4)


def test_large_shares_teach_what_a_token_costs_and_not_that_a_step_may_be_long():
    subject = pacer()
    subject.learn(4, 0, 0.050)
    for _ in range(30):
        num_prompt = subject.num_prompt_tokens(4, 40)
        subject.learn(4, num_prompt, 0.050 + 1e-3 * num_prompt)
    assert subject.num_prompt_tokens(4, 1) == pytest.approx(50, abs=5)
