import random

from teengined.scheduler.lookup import LookupIndex


def read(tokens):
    return lambda start, stop: tuple(tokens[start:stop])


def guessed(tokens, num_most: int = 4, window: int = 100) -> tuple[int, ...]:
    index = LookupIndex(len(tokens), window)
    index.extend(read(tokens), len(tokens), 1000)
    return index.propose(read(tokens), len(tokens), num_most)


def test_what_followed_last_time_is_guessed():
    assert guessed([1, 2, 3, 4, 5, 6, 7, 9, 9, 1, 2, 3]) == (4, 5, 6, 7)


def test_nothing_is_guessed_where_nothing_was_said_before():
    assert guessed([1, 2, 3, 4, 5, 6]) == ()
    assert guessed([1, 2]) == ()
    assert guessed([1, 2, 9, 1, 2]) == ()  # Two tokens in common are chance.


def test_longer_run_goes_before_a_nearer_one():
    tokens = [1, 2, 3, 4, 5, 6, 50, 51, 8, 4, 5, 6, 60, 61, 8, 1, 2, 3, 4, 5, 6]

    assert guessed(tokens, 2) == (50, 51)


def test_what_repeats_itself_goes_on_as_long_as_wanted():
    assert guessed([1, 7, 8, 9, 7, 8, 9, 7, 8], 7) == (9, 7, 8, 9, 7, 8, 9)


def test_what_lies_before_the_window_is_forgotten():
    tokens = [1, 2, 3, 4, *range(10, 40), 1, 2, 3]

    assert guessed(tokens, 1, window=40) == (4,)
    assert guessed(tokens, 1, window=20) == ()


def test_index_grows_a_bounded_number_of_tokens_at_a_time():
    tokens = [*range(50), 0, 1, 2]
    index = LookupIndex(400, 400)

    assert [index.extend(read(tokens), len(tokens), 20) for _ in range(4)] == [20, 20, 10, 0]
    assert index.propose(read(tokens), len(tokens), 2) == (3, 4)


def test_sequence_that_grows_is_followed_token_by_token(seed: int):
    rng = random.Random(seed)
    tokens = [rng.randrange(3) for _ in range(4)]
    index = LookupIndex(400, 50)
    while len(tokens) < 400:
        index.extend(read(tokens), len(tokens), 1000)
        for guess in (index.propose(read(tokens), len(tokens), 3),):
            run = tokens[-3:]
            seen = [end for end in range(3, len(tokens)) if tokens[end - 3 : end] == run and end >= len(tokens) - 50]
            ends = [end for end in seen if (tokens + list(guess))[end : end + 3] == list(guess)]
            assert not guess or ends, f"seed {seed}: {guess} never followed {run}"
            assert guess or not seen, f"seed {seed}: {run} was seen and not found"
        tokens.append(rng.randrange(3))


def test_collision_gives_no_wrong_guess():
    index = LookupIndex(4, 4)  # Tables of eight places.
    tokens = list(range(100, 300))
    for length in range(1, len(tokens) + 1):
        index.extend(read(tokens), length, 10)
        assert index.propose(read(tokens), length, 2) == ()
