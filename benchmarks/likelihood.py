"""Log-likelihoods of continuations over the socket and by transformers, as evaluation harnesses ask for them.

    python -m benchmarks.likelihood [--json] [--directory DIR]

SmolLM2 in fp32 and in bf16 on both sides, on questions with several answers. Differences are in nats, of sums over a
continuation; the last column says how often both sides prefer the same answer. Fails where fp32 differs by more than
its rounding.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.private_daemon import PrivateDaemon
from benchmarks.serving_models import ModelFiles, model_files
from benchmarks.table import print_json, print_table
from teengined.client import Client
from teengined.core.device import DeviceSpec
from teengined.protocol.messages import LoadModel, PlanModel, Score

__all__ = ["QUESTIONS", "main"]

QUESTIONS: Sequence[tuple[str, Sequence[str]]] = (
    ("The capital of France is", (" Paris.", " London.", " a kind of cheese.")),
    ("Water freezes at a temperature of", (" zero degrees Celsius.", " one hundred degrees Celsius.", " blue.")),
    ("2 + 2 =", (" 4", " 5", " 22")),
    ("She opened the umbrella because", (" it was raining.", " the sun is a star.", " umbrella.")),
    ("def add(a, b):\n    return", (" a + b", " a - b", " None")),
    ("The opposite of hot is", (" cold.", " warm.", " tall.")),
    ("Once upon a time there was a", (" little girl", " the of and", " princess who lived in a castle by the sea")),
    ("", ("The quick brown fox jumps over the lazy dog.", "Dog lazy the over jumps fox brown quick the.")),
)
# Sums over a continuation, in nats: rounding in fp32; bf16 keeps three digits of each logit.
_TOLERANCE = {"fp32": 1e-3, "bf16": 1.0}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DEVICE_BYTES = 3 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    precision: str
    largest_difference: float
    num_continuations: int
    same_preferences: int
    same_greedy: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print; exit with 1 where a difference is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--directory", default=str(Path(tempfile.gettempdir()) / "teengine-benchmarks"))
    options = parser.parse_args(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = model_files("smollm2", directory)
    comparisons = [_compare(files, precision) for precision in _TOLERANCE]
    print_table(
        ["PRECISION", "LARGEST DIFFERENCE", "SAME GREEDY", "SAME PREFERENCE"],
        [
            [
                item.precision,
                f"{item.largest_difference:.2e}",
                f"{item.same_greedy}/{item.num_continuations}",
                f"{item.same_preferences}/{len(QUESTIONS)}",
            ]
            for item in comparisons
        ],
    )
    if options.json:
        print_json({"cases": [{name: getattr(item, name) for name in item.__slots__} for item in comparisons]})
    sys.exit(any(item.largest_difference > _TOLERANCE[item.precision] for item in comparisons))


def _compare(files: ModelFiles, precision: str) -> _Comparison:
    theirs = _by_transformers(files, precision)
    ours = _over_the_socket(files, precision)
    pairs = [(a, b) for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)]
    preferred = [(_best(mine), _best(other)) for mine, other in zip(ours, theirs, strict=True)]
    return _Comparison(
        precision=precision,
        largest_difference=max(abs(a[0] - b[0]) for a, b in pairs),
        num_continuations=len(pairs),
        same_greedy=sum(a[1] == b[1] for a, b in pairs),
        same_preferences=sum(mine == other for mine, other in preferred),
    )


def _best(answers: Sequence[tuple[float, bool]]) -> int:
    return max(range(len(answers)), key=lambda place: answers[place][0])


def _over_the_socket(files: ModelFiles, precision: str) -> list[list[tuple[float, bool]]]:
    package = files.package_name(precision)
    cores = tuple(sorted(os.sched_getaffinity(0)))
    device = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=_DEVICE_BYTES, threads=len(cores), cores=cores)
    with PrivateDaemon(files.store.parent / "state", files.store, [device]) as daemon:
        daemon.client.load(LoadModel(plan=PlanModel(model=package, context_tokens=256, num_slots=2), verify=False))
        return [[_score(daemon.client, package, context, text) for text in texts] for context, texts in QUESTIONS]


def _score(client: Client, model: str, context: str, continuation: str) -> tuple[float, bool]:
    scored = client.score(Score(model=model, context=context, continuation=continuation))
    return scored.total, scored.is_greedy


def _by_transformers(files: ModelFiles, precision: str) -> list[list[tuple[float, bool]]]:
    tokenizer = AutoTokenizer.from_pretrained(files.model_dir)
    model = AutoModelForCausalLM.from_pretrained(files.model_dir, dtype=_DTYPES[precision]).eval()

    def score(context: str, continuation: str) -> tuple[float, bool]:
        first = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
        whole = tokenizer(context + continuation)["input_ids"]
        rest = whole[len(tokenizer(context)["input_ids"]) :]
        with torch.inference_mode():
            logits_TV = model(torch.tensor([first + rest])).logits[0, len(first) - 1 : -1].float()
        logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
        target_T = torch.tensor(rest)
        total = float(logprobs_TV.gather(1, target_T[:, None]).sum())
        return total, bool((logits_TV.argmax(-1) == target_T).all())

    return [[score(context, text) for text in texts] for context, texts in QUESTIONS]


if __name__ == "__main__":
    main()
