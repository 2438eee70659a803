from teengined.kvcache.block_table import BlockTable
from teengined.scheduler.sequence import Request, Sequence
from tests.unit.scheduler.machine import submitted


def sequence(**more) -> Sequence:
    request = Request(submitted=submitted(1, prompt=(1, 2, 3, 4), **more), arrived_seconds=0.0)
    return Sequence(id=1, choice=0, request=request, table=BlockTable(4))


def test_tokens_are_read_across_the_border_of_prompt_and_answer():
    item = sequence()
    item.emitted += [5, 6]

    assert [item.tokens(*span) for span in ((0, 2), (2, 5), (4, 6), (5, 9), (6, 9))] == [
        (1, 2), (3, 4, 5), (5, 6), (6,), (),
    ]  # fmt: skip


def test_view_is_made_anew_whenever_something_that_it_tells_has_changed():
    item = sequence()
    seen = [item.view(0.0)]
    assert item.view(0.0) is seen[0]

    seen.append(item.view(1.0))
    item.is_running = True
    seen.append(item.view(1.0))
    item.num_computed = 2
    seen.append(item.view(1.0))
    item.num_in_flight = 2
    seen.append(item.view(1.0))
    item.emitted.append(5)
    seen.append(item.view(1.0))

    assert len(set(seen)) == 6


def test_logit_rows_are_those_of_told_tokens_and_of_the_drawn_one():
    assert [sequence().num_logit_rows(*part) for part in ((0, 3), (0, 4), (3, 4))] == [0, 1, 1]
    told = sequence(prompt_logprobs=0)
    assert [told.num_logit_rows(*part) for part in ((0, 3), (0, 4), (3, 4))] == [3, 4, 1]
