from pathlib import Path

import pytest

from teengined.core.errors import SourceError
from teengined_plugins.sources.deepspeed.layout import find_layout, is_deepspeed

OPTIMIZER = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"
PARTITIONED = "zero_pp_rank_{}_mp_rank_00_model_states.pt"


def laid_out(directory: Path, *names: str, latest: str = "global_step7") -> Path:
    for name in ("config.json", *(f"global_step7/{name}" for name in names)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    (directory / "latest").write_text(latest)
    return directory


def test_files_are_found_by_rank_and_not_by_letter(tmp_path: Path) -> None:
    laid_out(tmp_path, "mp_rank_00_model_states.pt", *(OPTIMIZER.format(rank) for rank in range(12)))

    layout = find_layout(tmp_path)

    assert [path.name for path in layout.optimizer_files] == [OPTIMIZER.format(rank) for rank in range(12)]
    assert not layout.partitioned
    assert layout.companions == tmp_path


def test_the_directory_of_the_tag_itself_can_be_named(tmp_path: Path) -> None:
    laid_out(tmp_path, *(name.format(rank) for rank in range(2) for name in (OPTIMIZER, PARTITIONED)))

    layout = find_layout(tmp_path / "global_step7")

    assert layout.partitioned
    assert len(layout.model_files) == 2
    assert layout.companions == tmp_path


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([OPTIMIZER.format(0)], "no .*model_states"),
        ([PARTITIONED.format(0)], "no .*optim_states"),
        (["mp_rank_00_model_states.pt", OPTIMIZER.format(0), OPTIMIZER.format(2)], "rank 1"),
        ([PARTITIONED.format(0), OPTIMIZER.format(0), OPTIMIZER.format(1)], "2 .*optim_states.*1 "),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "cut by tensors"),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_01_optim_states.pt"], "cut by tensors"),
        (["mp_rank_00_model_states.pt", "layer_00-model_states.pt"], "cut by layers or experts"),
        (["mp_rank_00_model_states.pt", "layer_3_expert_7_mp_rank_00_model_states.pt"], "cut by layers or experts"),
        (["mp_rank_00_model_states.pt", OPTIMIZER.format(0), OPTIMIZER.format(0)[5:]], "both of rank 0"),
        (["zero/step.pt"], "no parameters"),
        (["zero/model.norm.weight/exp_avg.pt"], "missing"),
    ],
)
def test_files_that_make_no_whole_are_refused(names: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=problem):
        find_layout(laid_out(tmp_path, *names))


@pytest.mark.parametrize("latest", ["", "..", "../other", "/etc", "a\0b", "x" * 300, "elsewhere"])
def test_a_latest_file_that_leads_nowhere_or_out_is_refused(latest: str, tmp_path: Path) -> None:
    laid_out(tmp_path / "run", latest=latest)
    with pytest.raises(SourceError, match="latest"):
        find_layout(tmp_path / "run")


def test_a_tag_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    laid_out(tmp_path / "run", latest="out")
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "out").symlink_to("../other")
    with pytest.raises(SourceError, match="no directory here"):
        find_layout(tmp_path / "run")


def test_a_checkpoint_without_config_says_what_to_copy(tmp_path: Path) -> None:
    laid_out(tmp_path, "mp_rank_00_model_states.pt")
    (tmp_path / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json") as refused:
        find_layout(tmp_path)
    assert "tokenizer" in refused.value.hint


def test_a_directory_with_safetensors_is_left_to_the_source_that_reads_those(tmp_path: Path) -> None:
    laid_out(tmp_path, "mp_rank_00_model_states.pt")
    assert is_deepspeed(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert not is_deepspeed(tmp_path)
    assert is_deepspeed(tmp_path / "global_step7")
