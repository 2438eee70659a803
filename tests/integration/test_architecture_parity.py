"""Every architecture that the generic path claims gives transformers' own tokens, cut or whole, kept or streamed."""

from pathlib import Path

import pytest

from benchmarks.parity_architectures import compare_architecture
from tests.fakes.tiny_models import TINY_ARCHITECTURES


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_tokens_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    rows = list(compare_architecture(architecture, tmp_path))

    assert len(rows) == (3 if any("experts" in row.placement for row in rows) else 2)
    assert [row.difference for row in rows if row.difference] == []
