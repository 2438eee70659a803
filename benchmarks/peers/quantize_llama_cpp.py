"""llama.cpp's own quantiser: `python quantize_llama_cpp.py FROM.gguf TO.gguf`, to Q4_0 as its users have it.

The source is in Q8_0, so each weight is rounded twice, which changes no figure of these benchmarks.
"""

import ctypes
import os
import sys
from pathlib import Path

import llama_cpp

__all__ = ["main"]


def main():
    """Write the second file."""
    source, target = sys.argv[1:]
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    params.nthread = len(os.sched_getaffinity(0))
    unfinished = f"{target}.unfinished"
    status = llama_cpp.llama_model_quantize(source.encode(), unfinished.encode(), ctypes.byref(params))
    if status != 0:
        raise SystemExit(f"llama_model_quantize returned {status}")
    Path(unfinished).rename(target)


@llama_cpp.llama_log_callback
def _silent(level, text, data):
    pass


if __name__ == "__main__":
    main()
