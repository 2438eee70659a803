"""Every installed model source against what all share: recognising is cheap, and garbage gets a clear error."""

import socket
from pathlib import Path

import pytest

from teengined.core.errors import SourceError
from teengined.interfaces.registry import PluginRegistry
from teengined.interfaces.source import ModelSource

SOURCES = PluginRegistry.load().sources()
ODD_REFERENCES = [
    "",
    " ",
    ".",
    "/",
    "..",
    "a/b",
    "a/b/c",
    "a" * 300,
    "nul\0byte",
    "no such file.gguf",
    "//",
    "ünï/cödé",
    "~nobody-of-that-name/model",
]


@pytest.fixture(params=list(SOURCES))
def source(request: pytest.FixtureRequest) -> ModelSource:
    return SOURCES[request.param]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a source went to the network to recognise a reference")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(params=["empty-directory", "broken-config", "empty-file", "garbage.gguf", "list-config", "broken-zero"])
def garbage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Something that looks a little like a checkpoint."""
    path = tmp_path / request.param
    match request.param:
        case "empty-directory":
            path.mkdir()
        case "broken-config":
            path.mkdir()
            (path / "config.json").write_text("{")
        case "list-config":
            path.mkdir()
            (path / "config.json").write_text("[]")
        case "broken-zero":
            path.mkdir()
            (path / "config.json").write_text("{}")
            (path / "mp_rank_00_model_states.pt").write_bytes(b"PK\x03\x04" + bytes(range(256)))
        case "empty-file":
            path.touch()
        case _:
            path.write_bytes(b"GGUF" + bytes(range(256)) * 16)
    return str(path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("reference", ODD_REFERENCES, ids=lambda reference: repr(reference[:12]))
def test_recognising_answers_yes_or_no_to_anything(source: ModelSource, reference: str) -> None:
    assert source.matches(reference) in (True, False)


@pytest.mark.usefixtures("no_network")
def test_recognising_answers_yes_or_no_to_garbage(source: ModelSource, garbage: str) -> None:
    assert source.matches(garbage) in (True, False)


def test_opening_garbage_that_was_recognised_says_what_is_wrong(source: ModelSource, garbage: str) -> None:
    if not source.matches(garbage):
        pytest.skip(f"source {source.name} does not take this for its own")

    with pytest.raises(SourceError) as raised:
        source.open(garbage).tensors()

    assert len(raised.value.message) > 10


def test_every_source_recognises_only_some_references(source: ModelSource, garbage: str) -> None:
    assert not all(source.matches(reference) for reference in [*ODD_REFERENCES, garbage])
