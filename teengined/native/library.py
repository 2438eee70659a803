"""The loaded kernels of this process, or why there are none."""

import ctypes
import logging
import os
import threading
from pathlib import Path

from teengined.native.compiler import CompilerMissing, compiled_library, processor_digest

__all__ = [
    "AttentionCall",
    "Bf16LinearCall",
    "DequantiseCall",
    "Int4LinearCall",
    "Int8LinearCall",
    "KernelLibrary",
    "LayerInputsCall",
    "LayerOutputsCall",
    "NativeMatrix",
    "kernel_library",
    "kernels_name",
    "missing_reason",
]

logger = logging.getLogger(__name__)

# Set to any text to do without: to compare, or where a compiler must not be run.
_OFF_VARIABLE = "TEENGINE_NO_NATIVE"
_lock = threading.Lock()
# One entry once it was tried: asked for at every product, so without taking the lock.
_found: "list[tuple[KernelLibrary | None, str]]" = []


class Int8LinearCall(ctypes.Structure):
    """`te_int8_linear` of kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "scale", "y", "digits", "units")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_inputs", "num_outputs", "x_stride", "num_digits")),
        *((name, ctypes.c_int64) for name in ("dtype", "num_threads")),
    )


class Int4LinearCall(ctypes.Structure):
    """`te_int4_linear` of kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "codes", "books", "tables", "scale", "y")),
        *((name, ctypes.c_void_p) for name in ("digits", "units")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_inputs", "num_outputs", "x_stride", "num_digits")),
        *((name, ctypes.c_int64) for name in ("dtype", "num_threads")),
    )


class Bf16LinearCall(ctypes.Structure):
    """`te_bf16_linear` of kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "scale", "books", "tables", "y", "packed")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_inputs", "num_outputs", "x_stride", "weight_dtype")),
        *((name, ctypes.c_int64) for name in ("num_threads", "chunk")),
    )


class AttentionCall(ctypes.Structure):
    """`te_attention` of kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_void_p) for name in ("tables", "lengths", "sinks", "out")),
        *((name, ctypes.c_int64) for name in ("num_sequences", "num_heads", "num_kv_heads", "key_width")),
        *((name, ctypes.c_int64) for name in ("value_width", "block_tokens", "table_stride", "window")),
        *((name, ctypes.c_int64) for name in ("dtype", "kv_dtype", "num_threads")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
    )


class NativeMatrix(ctypes.Structure):
    """`te_matrix` of kernels.h: a stored weight (O, I) as the kernels of whole layers read it. Holds no reference.

    `dtype` is `BF16`, `INT8` or `INT4`; all but the first have a `scale` (O,) in fp32, and the last has `books` and
    `tables`, as in int4_linear.py. A `bias` (O,) is bf16.
    """

    BF16 = 1
    INT8 = 2
    INT4 = 3
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "scale", "books", "tables", "bias")),
        *((name, ctypes.c_int64) for name in ("num_outputs", "num_inputs", "dtype")),
    )


class DequantiseCall(ctypes.Structure):
    """`te_dequantise` of kernels.h, field by field."""

    _fields_ = (
        ("weight", NativeMatrix),
        ("y", ctypes.c_void_p),
        ("dtype", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


class LayerInputsCall(ctypes.Structure):
    """`te_layer_inputs` of kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "norm_weight")),
        *((name, NativeMatrix) for name in ("query", "key", "value")),
        *((name, ctypes.c_void_p) for name in ("query_norm", "key_norm", "cosines", "sines", "queries", "keys")),
        *((name, ctypes.c_void_p) for name in ("values", "kept_keys", "kept_values", "places", "scratch")),
        *((name, ctypes.c_int64) for name in ("num_rows", "head_width", "num_threads")),
        ("epsilon", ctypes.c_float),
    )


class LayerOutputsCall(ctypes.Structure):
    """`te_layer_outputs` of kernels.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attended", "hidden", "norm_weight")),
        *((name, NativeMatrix) for name in ("output", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("result", "scratch")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_threads")),
        ("epsilon", ctypes.c_float),
    )


class KernelLibrary:
    """The functions of one compiled library. Calls release Python's lock while they run."""

    def __init__(self, path: Path) -> None:
        """Load it. torch must be loaded before, so that both share one set of OpenMP threads.

        Raises:
            OSError: it cannot be loaded.
        """
        self.name = path.stem
        library = ctypes.CDLL(str(path))
        for kind in ("int8_linear", "int4_linear", "bf16_linear", "attention", "decoder_layer"):
            name = f"te_has_{kind}"
            getattr(library, name).restype = ctypes.c_int
        library.te_int8_stride.argtypes = [ctypes.c_int64]
        library.te_int8_stride.restype = ctypes.c_int64
        library.te_int8_linear_run.argtypes = [ctypes.POINTER(Int8LinearCall)]
        library.te_int8_linear_run.restype = None
        library.te_bf16_scratch.argtypes = [ctypes.c_int64, ctypes.c_int64]
        library.te_bf16_scratch.restype = ctypes.c_int64
        library.te_int4_stride.argtypes = [ctypes.c_int64]
        library.te_int4_stride.restype = ctypes.c_int64
        library.te_int4_linear_run.argtypes = [ctypes.POINTER(Int4LinearCall)]
        library.te_int4_linear_run.restype = None
        library.te_bf16_linear_run.argtypes = [ctypes.POINTER(Bf16LinearCall)]
        library.te_bf16_linear_run.restype = None
        library.te_attention_run.argtypes = [ctypes.POINTER(AttentionCall)]
        library.te_attention_run.restype = None
        library.te_dequantise_run.argtypes = [ctypes.POINTER(DequantiseCall)]
        library.te_dequantise_run.restype = None
        library.te_layer_inputs_scratch.argtypes = [ctypes.c_int64] * 2
        library.te_layer_outputs_scratch.argtypes = [ctypes.c_int64] * 4
        for name, structure in (("inputs", LayerInputsCall), ("outputs", LayerOutputsCall)):
            getattr(library, f"te_layer_{name}_scratch").restype = ctypes.c_int64
            getattr(library, f"te_layer_{name}_run").argtypes = [ctypes.POINTER(structure)]
            getattr(library, f"te_layer_{name}_run").restype = None
        self.has_int8_linear = bool(library.te_has_int8_linear())
        self.has_int4_linear = bool(library.te_has_int4_linear())
        self.has_bf16_linear = bool(library.te_has_bf16_linear())
        self.has_attention = bool(library.te_has_attention())
        self.has_decoder_layer = bool(library.te_has_decoder_layer())
        self.int8_stride = library.te_int8_stride
        self.bf16_scratch = library.te_bf16_scratch
        self.run_int8_linear = library.te_int8_linear_run
        self.int4_stride = library.te_int4_stride
        self.run_int4_linear = library.te_int4_linear_run
        self.run_bf16_linear = library.te_bf16_linear_run
        self.run_attention = library.te_attention_run
        self.run_dequantise = library.te_dequantise_run
        self.layer_inputs_scratch = library.te_layer_inputs_scratch
        self.layer_outputs_scratch = library.te_layer_outputs_scratch
        self.run_layer_inputs = library.te_layer_inputs_run
        self.run_layer_outputs = library.te_layer_outputs_run


def kernel_library() -> KernelLibrary | None:
    """Return the kernels, compiled and loaded at the first call; None where that is not possible."""
    return (_found[0] if _found else _outcome())[0]


def kernels_name() -> str:
    """Return a name for what this process computes with: another one where the last bits of a result may be others."""
    library = kernel_library()
    return f"stock-{processor_digest()}" if library is None else library.name


def missing_reason() -> str:
    """Return why there are no kernels; empty where there are."""
    return (_found[0] if _found else _outcome())[1]


def _outcome() -> tuple[KernelLibrary | None, str]:
    with _lock:
        if not _found:
            _found.append(_load())
        return _found[0]


def _load() -> tuple[KernelLibrary | None, str]:
    if os.environ.get(_OFF_VARIABLE):
        return None, f"{_OFF_VARIABLE} is set"
    try:
        return KernelLibrary(compiled_library()), ""
    except (CompilerMissing, OSError) as error:
        logger.warning("no compiled kernels, so stock ones are used: %s", error)
        return None, str(error)
