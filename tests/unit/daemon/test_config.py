from pathlib import Path

import pytest

from teengined.core.errors import ConfigError
from teengined.daemon.config import Directories, check_directories


def test_a_file_in_the_place_of_a_directory_is_refused_by_its_flag(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    check_directories(Directories(runtime=tmp_path, state=tmp_path, store=tmp_path / "made later"))
    with pytest.raises(ConfigError, match="file is no directory") as refused:
        check_directories(Directories(runtime=tmp_path, state=tmp_path, store=tmp_path / "file"))

    assert refused.value.hint == "name another with --store"
