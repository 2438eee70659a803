"""Which files of a directory make a DeepSpeed checkpoint. Names only; nothing is opened but the file `latest`.

DIRECTORY/latest                                             the tag, such as `global_step500`
DIRECTORY/TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt   a rank's part of the fp32 weights
DIRECTORY/TAG/mp_rank_00_model_states.pt                     stages 0 to 2
DIRECTORY/TAG/zero_pp_rank_R_mp_rank_00_model_states.pt      stage 3
DIRECTORY/TAG/zero/PARAMETER/fp32.pt                         universal
"""

import re
from dataclasses import dataclass
from pathlib import Path

from teengined.core.errors import SourceError
from teengined_plugins.sources.checked_files import checked_path

__all__ = ["Layout", "find_layout", "is_deepspeed"]

_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,4})_optim_states\.pt")
_MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,4})_model_states\.pt")
_LATEST = ("latest", "latest_universal")
_PARTS = "zero"
_FP32 = "fp32.pt"
_MAX_TAG_BYTES = 256
_MAX_FILES = 1_000_000
_UNIVERSAL_HINT = "convert it with DeepSpeed's ds_to_universal.py, which joins the parts, and name what that wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of one checkpoint, by what they are."""

    companions: Path
    """The directory with config.json and the tokenizer."""
    tag: str
    optimizer_files: tuple[Path, ...]
    """By rank."""
    model_files: tuple[Path, ...]
    """One for stages 0 to 2, else by rank."""
    partitioned: bool
    """The model files are those of stage 3."""
    parameter_files: tuple[tuple[str, Path], ...]
    """Of a universal checkpoint: parameter and file."""


def is_deepspeed(directory: Path) -> bool:
    """Say whether `directory` holds a DeepSpeed checkpoint and no safetensors file that makes it needless."""
    if any(directory.glob("*.safetensors")):
        return False
    return any((directory / name).is_file() for name in _LATEST) or _is_tag(directory)


def find_layout(directory: Path) -> Layout:
    """Return the layout of the checkpoint in `directory`, or in the one that its file `latest` names.

    Raises:
        SourceError: files are missing, or are those of a model that was cut otherwise than by ZeRO.
    """
    tagged = directory if _is_tag(directory) else _latest(directory)
    names = _names(tagged)
    universal = (tagged / _PARTS).is_dir()
    if not universal:
        _refuse_other_cuts(names)
    optimizer = {} if universal else _by_rank(names, _OPTIMIZER_FILE)
    partitioned = any(name.startswith("zero_") and _MODEL_FILE.fullmatch(name) for name in names)
    model = _by_rank([n for n in names if not partitioned or n.startswith("zero_")], _MODEL_FILE)
    if not universal:
        _check_ranks(tagged.name, optimizer, model, partitioned=partitioned)
    return Layout(
        companions=_companions(directory, tagged),
        tag=tagged.name,
        optimizer_files=tuple(checked_path(tagged, name) for _, name in sorted(optimizer.items())),
        model_files=tuple(checked_path(tagged, name) for _, name in sorted(model.items())),
        partitioned=partitioned,
        parameter_files=_parameter_files(tagged) if universal else (),
    )


def _is_tag(directory: Path) -> bool:
    return (directory / _PARTS).is_dir() or any(directory.glob("*_states.pt"))


def _latest(directory: Path) -> Path:
    for name in _LATEST:
        if (directory / name).is_file():
            with checked_path(directory, name).open("rb") as file:
                tag = file.read(_MAX_TAG_BYTES + 1).decode("utf-8", errors="replace").strip()
            if not re.fullmatch(r"[^/\\\0]{1,256}", tag) or tag in (".", ".."):
                raise SourceError(f"{name}: {tag!r:.80} is no name of a checkpoint beside it")
            tagged = directory / tag
            if not tagged.is_dir() or not tagged.resolve().is_relative_to(directory.resolve()):
                raise SourceError(f"{name} says that the checkpoint is in {tag:.80}, which is no directory here")
            return tagged
    raise SourceError(f"{directory.name} has no file `latest` that says where the checkpoint is")


def _names(directory: Path) -> list[str]:
    names = sorted(path.name for path in directory.iterdir())
    if len(names) > _MAX_FILES:
        raise SourceError(f"{directory.name} has more than {_MAX_FILES} files")
    return names


def _refuse_other_cuts(names: list[str]) -> None:
    """Refuse what ZeRO did not cut: parts by tensor, by pipeline stage, or by expert are shaped by training code."""
    for name in names:
        match = _OPTIMIZER_FILE.fullmatch(name) or _MODEL_FILE.fullmatch(name)
        if match and int(match[2]):
            raise SourceError(f"{name} is a part of a model that was cut by tensors as well", hint=_UNIVERSAL_HINT)
        if name.startswith(("layer_", "expp_rank_")) and name.endswith(".pt"):
            raise SourceError(
                f"{name} is a part of a model that was cut by layers or experts in training, which is not read",
                hint="save the model's weights as safetensors from the training program",
            )


def _by_rank(names: list[str], pattern: re.Pattern[str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in names:
        if match := pattern.fullmatch(name):
            rank = int(match[1] or 0)
            if rank in found:
                raise SourceError(f"{name} and {found[rank]} are both of rank {rank}", hint="remove the older one")
            found[rank] = name
    return found


def _check_ranks(tag: str, optimizer: dict[int, str], model: dict[int, str], *, partitioned: bool) -> None:
    if not model:
        raise SourceError(f"{tag} has no *_model_states.pt file")
    if partitioned and not optimizer:
        raise SourceError(f"{tag} has no *_optim_states.pt files; in ZeRO stage 3 the weights are in them")
    for what, ranks in (("optim", optimizer), ("model", model)):
        missing = sorted(set(range(max(ranks, default=-1) + 1)) - set(ranks))
        if missing:
            raise SourceError(
                f"{tag} lacks the *_{what}_states.pt file of rank {missing[0]}",
                hint="copy the files of every process of the training run into the directory",
            )
    if partitioned and set(optimizer) != set(model):
        raise SourceError(
            f"{tag} has {len(optimizer)} *_optim_states.pt files and {len(model)} *_model_states.pt files"
        )


def _companions(directory: Path, tagged: Path) -> Path:
    for place in (directory, tagged, tagged.resolve().parent):
        if (place / "config.json").is_file():
            return place
    raise SourceError(
        f"{directory.name} has no config.json: a DeepSpeed checkpoint holds weights, and not what model they are of",
        hint="copy config.json, tokenizer.json and tokenizer_config.json of the model that was trained into it",
    )


def _parameter_files(tagged: Path) -> tuple[tuple[str, Path], ...]:
    parameters = [name for name in _names(tagged / _PARTS) if (tagged / _PARTS / name).is_dir()]
    if not parameters:
        raise SourceError(f"{tagged.name}/{_PARTS} holds no parameters")
    return tuple((name, checked_path(tagged, f"{_PARTS}/{name}/{_FP32}")) for name in parameters)
