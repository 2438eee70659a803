import pytest

from teengined.weights.options import StreamOptions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("read_threads", 0),
        ("read_chunk_bytes", 5000),
        ("read_chunk_bytes", 0),
        ("ring_slots", 0),
        ("timeout_seconds", 0),
        ("expert_guesses", -1),
    ],
)
def test_options_refuse_what_cannot_work_and_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        StreamOptions(**{field: value})
