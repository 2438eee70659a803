from pathlib import Path

import pytest

from teengined.cli.verbs import demo
from teengined.modelpack.naming import check_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2", "smollm2"),
        ("ORG/Some-Model", "Some-Model"),
        ("/models/llama.Q4_0.gguf", "llama.Q4_0"),
        ("/models/a strange  name!/", "a-strange-name"),
        ("/", "model"),
    ],
)
def test_a_package_is_named_after_its_source_the_same_each_time(model: str, name: str):
    assert check_name(demo._package_name(model)) == name


def test_laps_add_up_to_the_time_since_the_start():
    watch = demo.Stopwatch(began_seconds=10.0)

    watch.lap("model", 12.0)
    watch.lap("daemon", 12.5)

    assert watch.laps == [("model", 2.0), ("daemon", 0.5)]
    assert watch.total_seconds == 2.5


def test_the_cache_directory_of_the_user_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert demo._default_state_dir() == tmp_path / "teengine" / "demo"
