import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from teengined.native import compiler
from teengined.native.compiler import CompilerMissing, compiled_library, kernels_digest, processor_kernels
from teengined.native.library import kernel_library, missing_reason

HAS_COMPILER = any(map(compiler.shutil.which, ("cc", "gcc", "clang")))
needs_a_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler is installed")


@needs_a_compiler
def test_a_library_is_compiled_once_and_found_again(tmp_path: Path):
    first = compiled_library(tmp_path)
    modified = first.stat().st_mtime_ns
    assert compiled_library(tmp_path) == first
    assert first.stat().st_mtime_ns == modified
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@needs_a_compiler
def test_a_change_of_any_source_or_header_makes_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources = Path(compiler.__file__).parent
    files = [path.name for path in sources.iterdir() if path.suffix in {".c", ".h"}]
    for name in files:
        (tmp_path / name).write_bytes((sources / name).read_bytes())
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "compiler.py"))
    names = {compiler._digest(sys.executable)}

    for name in files:
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        names.add(compiler._digest(sys.executable))

    assert len(names) == 1 + len(files)


@needs_a_compiler
def test_a_directory_that_others_may_write_to_is_not_trusted(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    assert compiled_library(shared).parent != shared


@needs_a_compiler
def test_links_are_not_followed_to_a_library(tmp_path: Path):
    real = tmp_path / "real"
    (real / "native").mkdir(parents=True, mode=0o700)
    (tmp_path / "leaf").symlink_to(real / "native")
    (tmp_path / "above").symlink_to(real)
    for directory in (tmp_path / "leaf", tmp_path / "above" / "native"):
        assert compiled_library(directory).parent != directory
    assert list((real / "native").iterdir()) == []


@needs_a_compiler
def test_every_directory_that_is_made_is_its_owner_s_alone(tmp_path: Path):
    before = os.umask(0o007)
    try:
        library = compiled_library(tmp_path / "one" / "two" / "native")
    finally:
        os.umask(before)
    for path in (library, *library.parents[:3]):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@needs_a_compiler
@pytest.mark.parametrize("kind", ["writable", "link"])
def test_a_library_that_others_could_have_changed_is_compiled_again(kind: str, tmp_path: Path):
    library = compiled_library(tmp_path / "kept")
    content = b"not from our compiler"
    if kind == "writable":
        library.write_bytes(content)
        library.chmod(0o666)
    else:
        (tmp_path / "theirs").write_bytes(content)
        library.unlink()
        library.symlink_to(tmp_path / "theirs")

    assert compiled_library(tmp_path / "kept") == library
    assert library.read_bytes().startswith(b"\x7fELF")
    assert stat.S_ISREG(library.lstat().st_mode)
    assert library.stat().st_mode & 0o022 == 0


@needs_a_compiler
def test_a_process_without_a_home_compiles_and_leaves_nothing_behind(tmp_path: Path):
    program = (
        "import os, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from teengined.native.compiler import compiled_library\n"
        "library = compiled_library()\n"
        "assert library.is_file()\n"
        "print(library)\n"
    )
    homes = ("HOME", "CACHE_DIRECTORY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    outcome = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=150
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("fpu sse2 avx2 fma", ()),
        ("avx512f avx512bw avx512vl", ("attention",)),
        ("avx512f avx512bw avx512vl avx512_vnni", ("int8 products", "attention")),
        (
            "avx512_bf16 avx512f avx512bw avx512vl avx512_vnni",
            ("int8 products", "bf16 products", "attention", "decoder layers"),
        ),
    ],
)
def test_a_processor_runs_the_kernels_whose_instructions_it_has(flags: str, names: tuple[str, ...]):
    assert processor_kernels(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n") == names


@needs_a_compiler
def test_the_flags_name_what_was_compiled():
    library = kernel_library()
    if library is None:
        pytest.skip(missing_reason())
    has = (library.has_int8_linear, library.has_bf16_linear, library.has_attention, library.has_decoder_layer)
    names = ("int8 products", "bf16 products", "attention", "decoder layers")
    compiled = {name for name, there in zip(names, has, strict=True) if there}
    assert compiled <= set(processor_kernels())


def test_another_compiler_or_none_has_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    digests = {kernels_digest()}
    monkeypatch.setenv("PATH", str(tmp_path))
    for content in (None, "#!/bin/sh\n", "#!/bin/sh\nexit 1\n"):
        if content is not None:
            (tmp_path / "cc").write_text(content)
            (tmp_path / "cc").chmod(stat.S_IRWXU)
        digests |= {kernels_digest(), kernels_digest()}

    assert len(digests) == (4 if HAS_COMPILER else 3)


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
        "from teengined.native.library import kernel_library, kernels_name, missing_reason\n"
        "from teengined_plugins.precisions.int8 import Int8Precision\n"
        "assert kernel_library() is None and missing_reason()\n"
        "assert kernels_name().startswith('stock-')\n"
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
