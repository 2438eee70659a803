import os
import stat
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path

import pytest
import torch

from teengined.native.library import kernel_library, missing_reason
from teengined_plugins.precisions import kept_choices
from teengined_plugins.precisions.bf16 import Bf16Precision
from teengined_plugins.precisions.int4 import Int4Precision
from teengined_plugins.precisions.int8 import Int8Precision
from teengined_plugins.precisions.kept_choices import KeptChoices, choices_file
from teengined_plugins.precisions.kernel_choice import KernelChoice

KEY = ("int8", 8, torch.Size((64, 128)), torch.bfloat16, torch.device("cpu"), 4)
LINE = b'{"call":["int8",8,[64,128],"torch.bfloat16","cpu",4],"kernel":"native"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "choices.jsonl"


def _process(path: Path) -> KeptChoices:
    """What one process has: it reads the file once."""
    return KeptChoices(lambda: path)


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def test_file_holds_what_was_called_and_what_won_a_line_each(path: Path) -> None:
    _process(path).keep(KEY, "native")
    _process(path).keep(KEY, "native")

    assert path.read_bytes() == 2 * LINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_winner_is_believed_where_two_measurements_agree(path: Path) -> None:
    _process(path).keep(KEY, "native")
    assert _process(path).winner(KEY) is None

    _process(path).keep(KEY, "native")
    assert _process(path).winner(KEY) == "native"
    assert _process(path).winner((*KEY[:-1], 2)) is None


def test_disagreement_is_measured_until_the_two_latest_agree(path: Path) -> None:
    for winner, believed in [("digits", None), ("native", None), ("digits", None), ("digits", "digits")]:
        _process(path).keep(KEY, winner)
        assert _process(path).winner(KEY) == believed


def test_measurements_of_one_process_count_for_it_as_well(path: Path) -> None:
    kept = _process(path)
    kept.keep(KEY, "native")
    kept.keep(KEY, "native")

    assert kept.winner(KEY) == "native"


def test_file_is_read_once_a_process(path: Path) -> None:
    kept = _process(path)
    assert kept.winner(KEY) is None

    _write(path, 2 * LINE)

    assert kept.winner(KEY) is None


@pytest.mark.parametrize(
    "key", [(8, torch.device("cuda:0")), (8, torch.device("meta")), (8, 0.5), ("int8", object()), None]
)
def test_calls_elsewhere_and_what_has_no_name_are_not_kept(key: Hashable, path: Path) -> None:
    kept = _process(path)
    kept.keep(key, "native")

    assert kept.winner(key) is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("key", "winner"), [(("x" * 1000,), "native"), (("{",), "native"), ("int8", "native"), (KEY, "a\nb"), (KEY, "")]
)
def test_line_that_could_not_be_read_is_not_written(key: Hashable, winner: str, path: Path) -> None:
    _process(path).keep(key, winner)

    assert not path.exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"\n",
        b"not json\n",
        b"\xff\xfe\x00\n",
        b"[" * 200 + b"\n",
        b"{" * 5000 + b"\n",
        b"null\n",
        LINE.replace(b'"native"', b"7"),
        LINE.replace(b'"kernel"', b'"kernels"'),
        LINE.replace(b'"native"', b'"digits","more":1'),
        LINE.replace(b'"native"', b'"digits","kernel":"digits"'),
        b" " + LINE.replace(b"native", b"digits"),
        LINE.replace(b",", b", ").replace(b"native", b"digits"),
        LINE.replace(b"native", b"digits")[:-5] + b"\n",
        LINE.replace(b"native", b"digits\xc3\xa9"),
    ],
)
def test_lines_that_are_not_understood_are_passed_over(damage: bytes, path: Path) -> None:
    _write(path, damage + LINE + damage + LINE + damage)

    assert _process(path).winner(KEY) == "native"


def test_line_that_was_cut_off_costs_no_more_than_the_one_after_it(path: Path) -> None:
    _write(path, LINE + LINE[:20])

    _process(path).keep(KEY, "native")
    assert _process(path).winner(KEY) is None

    _process(path).keep(KEY, "native")
    assert _process(path).winner(KEY) == "native"


def test_file_that_is_too_large_is_begun_anew(path: Path) -> None:
    _write(path, LINE * (kept_choices.MAX_FILE_BYTES // len(LINE) + 1))
    kept = _process(path)
    assert kept.winner(KEY) is None

    kept.keep(KEY, "native")

    assert path.read_bytes() == LINE


def test_file_never_grows_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_choices, "MAX_FILE_BYTES", 5 * len(LINE))
    for _ in range(12):
        _process(path).keep(KEY, "native")
        assert path.stat().st_size <= 5 * len(LINE)

    assert _process(path).winner(KEY) == "native"


def test_number_of_kept_calls_in_memory_is_bounded_and_the_oldest_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_choices, "MAX_REMEMBERED", 3)
    for call in (
        1,
        1,
        2,
        2,
        3,
        3,
        1,
        4,
        4,
    ):  # Of three that are known when 4 comes, 2 is the one least lately measured.
        _process(path).keep((call,), "native")

    assert [_process(path).winner((call,)) for call in (1, 2, 3, 4)] == ["native", None, "native", "native"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_to_is_neither_believed_nor_written_to(mode: int, path: Path) -> None:
    _write(path, 2 * LINE, mode)
    kept = _process(path)

    assert kept.winner(KEY) is None
    kept.keep(KEY, "native")
    assert path.read_bytes() == 2 * LINE


def test_file_of_somebody_else_is_neither_believed_nor_written_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(path, 2 * LINE)
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    kept = _process(path)

    assert kept.winner(KEY) is None
    kept.keep(KEY, "native")
    assert path.read_bytes() == 2 * LINE


def test_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    _write(theirs, 2 * LINE)
    path.symlink_to(theirs)
    kept = _process(path)

    assert kept.winner(KEY) is None
    kept.keep(KEY, "native")
    assert theirs.read_bytes() == 2 * LINE


def test_what_is_no_file_holds_nothing_up(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path, 0o600)
    for place in (path, tmp_path, tmp_path / "nowhere" / "choices.jsonl"):
        kept = _process(place)
        kept.keep(KEY, "native")
        assert _process(place).winner(KEY) is None


def test_without_a_place_every_use_measures() -> None:
    kept = KeptChoices(lambda: None)
    for _ in range(3):
        kept.keep(KEY, "native")

    assert kept.winner(KEY) is None


def test_tests_keep_nothing() -> None:
    assert choices_file() is None


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own; the kernels that this process has loaded stay."""
    kernel_library()
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("TEENGINE_NO_KEPT_CHOICES")
    return tmp_path / "teengine" / "native"


def test_file_lies_in_the_directory_of_compiled_kernels_where_that_is_ours_alone(cache: Path) -> None:
    file = choices_file()
    assert file is not None
    assert file.parent == cache
    assert choices_file() == file

    cache.chmod(0o777)
    assert choices_file() is None


@pytest.mark.parametrize("name", ["torch.__version__", "torch.backends.cpu.get_cpu_capability"])
def test_another_torch_keeps_its_own_choices(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = choices_file()
    monkeypatch.setattr(name, "0.1" if name.endswith("version__") else lambda: "SMALLER")

    assert choices_file() != before


def test_other_sources_of_kernels_keep_their_own_choices(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = choices_file()
    monkeypatch.setattr(kept_choices, "__file__", str(tmp_path / "kept_choices.py"))

    assert choices_file() != before


def test_without_compiled_kernels_choices_are_kept_apart(cache: Path) -> None:
    if kernel_library() is None:
        pytest.skip(missing_reason())
    program = "from teengined_plugins.precisions.kept_choices import choices_file; print(choices_file())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TEENGINE_NO_NATIVE": "1"}
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stderr

    stock = Path(outcome.stdout.strip())
    assert stock.parent == cache
    assert stock != choices_file()


class Refusing(KernelChoice):
    def run(self, *_args: object, **_options: object) -> torch.Tensor:
        raise AssertionError("a kernel is chosen")

    def winner(self, key: Hashable) -> str | None:
        raise AssertionError("a choice is looked up")


@pytest.mark.parametrize("strategy", [Bf16Precision, Int8Precision, Int4Precision])
def test_strict_numerics_asks_for_no_choice(strategy: type[Bf16Precision | Int8Precision | Int4Precision]) -> None:
    precision = strategy(Refusing())
    for width in (96, 100):
        parts = precision.encode(torch.randn(32, width))

        assert precision.linear_fixed(torch.randn(3, width).bfloat16(), parts, None).shape == (3, 32)


def test_the_file_is_looked_for_by_the_first_call_that_needs_it() -> None:
    def refusing() -> Path | None:
        raise AssertionError("looked for")

    kept = KeptChoices(refusing)

    assert kept.winner((8, torch.device("meta"))) is None
