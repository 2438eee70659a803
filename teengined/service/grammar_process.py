"""The program that tries grammars for the daemon: `python -m teengined.service.grammar_process BOUNDS`.

One JSON request a line on standard input: `package_dir` and `grammar`. Answers, a line each: `{"state": "ready"}` once
the package's tokenizer is there, then `{"state": "valid"}`, or at any time `{"state": "refused", "code": …}` with
message and hint. Processor time and memory are bounded by the kernel: whoever started this sees it end.
"""

import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teengined.core.errors import RequestError, TeengineError
from teengined.core.records import from_mapping
from teengined.core.sampling import Grammar
from teengined.engine.grammar import read_tokenizer
from teengined.service.grammar_probe import probe

if TYPE_CHECKING:
    import llguidance

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
# Hosts serve a model or two; each tokenizer takes some tens of megabytes.
_MAX_TOKENIZERS = 2
# Grammars are for later tokens; those of the streams that run come first.
_NICENESS = 10


def main(arguments: list[str]) -> int:
    """Answer requests until the input ends. `arguments`: bytes of memory, seconds of processor time, parent's id."""
    memory_bytes, cpu_seconds, parent = int(arguments[0]), float(arguments[1]), int(arguments[2])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1  # it ended before the kernel was asked to tell
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizers: dict[tuple[str, int], llguidance.LLTokenizer] = {}
    for line in sys.stdin:
        try:
            _answer(json.loads(line), tokenizers, cpu_seconds)
        except TeengineError as error:
            _say(state="refused", code=error.code, message=error.message, hint=error.hint)
        except MemoryError:
            return 1
    return 0


def _answer(
    request: dict[str, Any], tokenizers: "dict[tuple[str, int], llguidance.LLTokenizer]", cpu_seconds: float
) -> None:
    package_dir = Path(request["package_dir"])
    try:
        key = (str(package_dir), (package_dir / "tokenizer.json").stat().st_mtime_ns)
    except OSError:
        key = (str(package_dir), 0)  # reading it says what is wrong
    _allow_processor_time(None)
    if key not in tokenizers:
        if len(tokenizers) == _MAX_TOKENIZERS:
            tokenizers.pop(next(iter(tokenizers)))
        tokenizers[key] = read_tokenizer(package_dir)
    _say(state="ready")
    _allow_processor_time(cpu_seconds)
    try:
        grammar = from_mapping(Grammar, request["grammar"])
    except ValueError as error:
        raise RequestError(f"the grammar is malformed: {error}") from error
    probe(grammar, tokenizers[key])
    _say(state="valid")


def _allow_processor_time(cpu_seconds: float | None) -> None:
    """Have the kernel end this process after so much more; the kernel counts in whole seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = resource.RLIM_INFINITY if cpu_seconds is None else math.ceil(time.process_time() + cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _say(**answer: str) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
