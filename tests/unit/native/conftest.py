"""Kernels as compiled for other processors than the one at hand."""

import subprocess
from pathlib import Path

import pytest

from teengined.native import compiler, library
from teengined.native.library import KernelLibrary


@pytest.fixture(params=["this processor", "any processor"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """The kernels as compiled for the processor at hand, and as for one without its instructions."""
    if request.param == "any processor":
        path = _plain_library(tmp_path_factory.getbasetemp())
        monkeypatch.setattr(library, "_found", [(KernelLibrary(path), "")])


def _plain_library(directory: Path) -> Path:
    path = directory / "plain.so"
    if not path.exists():
        flags = [flag for flag in compiler._FLAGS if not flag.startswith("-march")]
        sources = [str(Path(compiler.__file__).parent / name) for name in compiler._SOURCES]
        subprocess.run(["cc", *flags, *sources, "-o", str(path)], check=True, timeout=120)
    return path
