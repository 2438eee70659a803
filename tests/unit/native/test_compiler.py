import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from teengined.native import compiler
from teengined.native.compiler import CompilerMissing, compiled_library

needs_a_compiler = pytest.mark.skipif(
    not any(map(compiler.shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed"
)


@needs_a_compiler
def test_a_library_is_compiled_once_and_found_again(tmp_path: Path):
    first = compiled_library(tmp_path)
    modified = first.stat().st_mtime_ns
    assert compiled_library(tmp_path) == first
    assert first.stat().st_mtime_ns == modified
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@needs_a_compiler
def test_a_directory_that_others_may_write_to_is_not_trusted(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    assert compiled_library(shared).parent != shared


def test_without_a_compiler_the_error_names_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="none of cc, gcc, clang is installed"):
        compiled_library(tmp_path / "kept")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    fake.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CompilerMissing, match="no such option"):
        compiled_library(tmp_path / "kept")


@pytest.mark.parametrize(("name", "value"), [("TEENGINE_NO_NATIVE", "1"), ("PATH", "/nowhere")])
def test_products_work_where_there_are_no_kernels(name: str, value: str, tmp_path: Path):
    program = (
        "import torch\n"
        "from teengined.native.library import kernel_library, missing_reason\n"
        "from teengined_plugins.precisions.int8 import Int8Precision\n"
        "assert kernel_library() is None and missing_reason()\n"
        "strategy = Int8Precision()\n"
        "parts = strategy.encode(torch.randn(32, 64))\n"
        "x = torch.randn(4, 64)\n"
        "torch.testing.assert_close(strategy.linear(x, parts, None), strategy.linear_fixed(x, parts, None))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(tmp_path), name: value}
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stderr
