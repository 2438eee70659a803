"""The process that reads `.pt` files: what it can do, what it cannot, and that whoever asks outlives it."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from teengined.core.errors import SourceError
from teengined_plugins.sources.pickled.outcome import ReadingBounds
from teengined_plugins.sources.pickled.reading import OpenedFile, read_files
from teengined_plugins.sources.pickled.values import TensorRange
from tests.fakes.deepspeed_files import write_torch_file
from tests.fakes.hostile_torch_files import archive, call, in_a_file, mention, text

TIGHT = ReadingBounds(cpu_seconds=0.5, wall_seconds=20.0, memory_bytes=64 << 20, max_reply_bytes=1 << 16)


def read(
    paths: Sequence[Path], wanted: Sequence[Sequence[str]], bounds: ReadingBounds | None = None
) -> list[OpenedFile]:
    return list(read_files(paths, wanted, bounds))


def confined(code: str) -> str:
    """Run `code` in a process that has given everything up, and return what it prints."""
    program = (
        "import os, socket, subprocess\n"
        "from teengined_plugins.sources.pickled.confinement import confine\n"
        "keep = os.dup(1)\n"
        "confine(64 << 20)\n"
        f"try:\n    {code}\n    print('done')\n"
        "except (OSError, MemoryError) as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/hostname')",
        "open('written', 'w')",
        "socket.socket()",
        "os.pipe()",
        "subprocess.run(['true'])",
        "bytearray(128 << 20)",
    ],
)
def test_a_confined_process_cannot(code: str) -> None:
    assert confined(code) in ("OSError", "PermissionError", "MemoryError", "BlockingIOError")


def test_a_confined_process_can_still_answer() -> None:
    assert confined("os.write(keep, b'')") == "done"


def test_many_files_are_read_in_order(tmp_path: Path) -> None:
    paths = [write_torch_file({"n": i, "t": torch.full((i,), 1.0)}, tmp_path / f"{i}.pt") for i in range(70)]

    files = read(paths, [("n",), ("t",)])

    assert [file.values["n"] for file in files] == list(range(70))
    for file in files:
        tensor = file.values["t"]
        assert isinstance(tensor, TensorRange)
        content = file.path.read_bytes()[tensor.offset_bytes :][: tensor.size_bytes]
        assert content == torch.ones(tensor.num_elements).numpy().tobytes()


def test_code_in_a_file_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    bad = tmp_path / "bad.pt"
    bad.write_bytes(in_a_file(call("os", "system", text(f"touch {witness}"))))

    with pytest.raises(SourceError, match=r"bad\.pt names os\.system"):
        read([bad], [("module",)])
    assert not witness.exists()


BOMBS = {
    # A list of a thousand pairs, copied into a mapping again and again.
    "time": b"](" + (text("k") + b"K\x01\x86") * 1000 + b"eq\x00"
    + (mention("collections", "OrderedDict") + b"h\x00\x85R0") * 40_000,
    "memory": b"](" + b"]" * (4 << 20) + b"e",
    "reply": b"](" + (b"K\xff" * 200_000) + b"e",
}  # fmt: skip


@pytest.mark.parametrize(
    ("bomb", "problem"), [("time", "processor time"), ("memory", "memory"), ("reply", "to describe")]
)
def test_a_file_made_to_be_expensive_gets_an_error_that_names_it(bomb: str, problem: str, tmp_path: Path) -> None:
    good = write_torch_file({"module": 1}, tmp_path / "good.pt")
    bad = tmp_path / "bad.pt"
    bad.write_bytes(in_a_file(BOMBS[bomb]))

    files = read_files([good, bad, good], [()], TIGHT)

    assert next(files).values[""] == {"module": 1}
    with pytest.raises(SourceError, match=rf"bad\.pt .*{problem}"):
        next(files)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", in_a_file(b"N")[:-30], archive({"x/data.pkl": bytes(1 << 20)}, compressed=True), archive({"y": b""})],
    ids=["empty", "two-bytes", "truncated", "compressed", "nothing"],
)
def test_a_damaged_file_gets_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(SourceError, match=r"bad\.pt "):
        read([tmp_path / "bad.pt"], [()])


def test_a_file_that_is_not_there_gets_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        read([tmp_path / "none.pt"], [()])
