"""Perplexity of SmolLM2 in every precision, over the socket: what storing weights more coarsely costs.

    python -m benchmarks.perplexity [--json] [--directory DIR] [--text FILE] [--budget SIZE] [--calibration FILE]

The text is this project's ARCHITECTURE.md, the text that precisions are chosen on for `auto` its CONTRIBUTING.md.
Fails where int8 is more than 1 % above fp32, or int4 more than 6 %.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.private_daemon import PrivateDaemon
from benchmarks.serving_models import ModelFiles, model_files
from benchmarks.table import print_json, print_table
from teengined.client.perplexity import measure_perplexity
from teengined.core.device import DeviceSpec
from teengined.core.quantities import format_bytes
from teengined.protocol.messages import LoadModel, PlanModel

__all__ = ["main"]

_ROOT = Path(__file__).parents[1]
_PRECISIONS = ("fp32", "bf16", "int8", "int4")
_LIMITS = {"int8": 0.01, "int4": 0.06}
_DEVICE_BYTES = 3 << 30
_AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    precision: str
    size_bytes: int
    perplexity: float
    num_tokens: int
    above_fp32: float
    """As a share of fp32's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; exit with 1 where a limit is passed."""
    options = _options(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    files = model_files("smollm2", directory)
    packages = {precision: files.package_name(precision) for precision in _PRECISIONS}
    packages[_AUTO] = _chosen(files, options.budget, Path(options.calibration))
    cases = _measured(files, packages, Path(options.text).read_text("utf-8"))
    print_table(
        ["PRECISION", "SIZE", "PERPLEXITY", "ABOVE FP32"],
        [
            [case.precision, format_bytes(case.size_bytes), f"{case.perplexity:.2f}", f"{100 * case.above_fp32:+.2f} %"]
            for case in cases
        ],
    )
    if options.json:
        print_json({"cases": [{name: getattr(case, name) for name in case.__slots__} for case in cases]})
    sys.exit(any(case.above_fp32 > _LIMITS.get(case.precision, float("inf")) for case in cases))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--directory", default=str(Path(tempfile.gettempdir()) / "teengine-benchmarks"))
    parser.add_argument("--text", default=str(_ROOT / "ARCHITECTURE.md"))
    parser.add_argument("--calibration", default=str(_ROOT / "CONTRIBUTING.md"))
    parser.add_argument("--budget", default="100MB", help="bytes of `auto`'s package")
    return parser.parse_args(arguments)


def _chosen(files: ModelFiles, budget: str, calibration: Path) -> str:
    name = f"{files.name}-{_AUTO}-{budget}"
    if not (files.store / name).is_dir():
        command = ["convert", str(files.model_dir), "--store", str(files.store), "--name", name]
        choice = ["--budget", budget, "--calibration", str(calibration)]
        subprocess.run(
            [sys.executable, "-m", "teengined.modelpack", *command, *choice], check=True, stdout=subprocess.DEVNULL
        )
    return name


def _measured(files: ModelFiles, packages: dict[str, str], text: str) -> list[_Case]:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    device = DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=_DEVICE_BYTES, threads=len(cores), cores=cores)
    cases: list[_Case] = []
    with PrivateDaemon(files.store.parent / "state", files.store, [device]) as daemon:
        for precision, package in packages.items():
            plan = PlanModel(model=package, context_tokens=2048, num_slots=2)
            daemon.client.load(LoadModel(plan=plan, verify=False))
            found = measure_perplexity(daemon.client, package, text)
            reference = cases[0].perplexity if cases else found.value
            cases.append(
                _Case(
                    precision=precision,
                    size_bytes=daemon.client.show(package).summary.size_bytes,
                    perplexity=found.value,
                    num_tokens=found.num_tokens,
                    above_fp32=found.value / reference - 1,
                )
            )
            daemon.client.unload(package)
    return cases


if __name__ == "__main__":
    main()
