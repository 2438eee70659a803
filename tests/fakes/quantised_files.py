"""Checkpoints quantised in every form that is read, each with the values that it stands for.

Codes are drawn or rounded plainly, packed number by number, and the values computed from the codes by the formula that
the form's documentation states: nothing here shares code with the reader.
"""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["E2M1", "FORMS", "Form", "Quantised", "pack", "quantise_directory"]

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
NF4 = [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """One matrix: its stored tensors by suffix, and its values (O, I) in fp32."""

    parts: Mapping[str, torch.Tensor]
    values: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form: what config.json says, and how a matrix of a shape is stored."""

    config: Mapping[str, Any]
    make: Callable[[int, int, random.Random], Quantised]
    suffix: str = ".weight"
    """What of the parameter's name the parts' suffixes replace."""


def pack(numbers: list[int], bits: int) -> list[int]:
    """Return numbers in signed 32-bit words, the first in the lowest bits."""
    per_word = 32 // bits
    words: list[int] = []
    for start in range(0, len(numbers), per_word):
        word = sum(number << (bits * place) for place, number in enumerate(numbers[start : start + per_word]))
        words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return words


def quantise_directory(source: Path, target: Path, form: Form, wanted: Callable[[str], bool], seed: int = 0) -> Path:
    """Write `source` (plain) to `target` with its wanted matrices in `form`, and `source` itself with their values."""
    rng = random.Random(seed)
    plain = load_file(source / "model.safetensors")
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in plain.items():
        if not wanted(name):
            stored[name] = tensor
            continue
        rows, columns = tensor.shape
        made = form.make(rows, columns, rng)
        plain[name] = made.values
        stem = name.removesuffix(form.suffix)
        stored.update({stem + suffix: part.contiguous() for suffix, part in made.parts.items()})
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    save_file(plain, source / "model.safetensors", {"format": "pt"})
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": dict(form.config)}))
    return target


def _codes(rng: random.Random, rows: int, columns: int, below: int) -> list[list[int]]:
    return [[rng.randrange(below) for _ in range(columns)] for _ in range(rows)]


def _scales(rng: random.Random, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([[0.01 + 0.02 * rng.random() for _ in range(columns)] for _ in range(rows)]).to(dtype)


def _float8(rng: random.Random, rows: int, columns: int) -> torch.Tensor:
    return torch.tensor([[rng.gauss(0, 2) for _ in range(columns)] for _ in range(rows)]).to(torch.float8_e4m3fn)


def _blocked(values: torch.Tensor, scale: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    out = torch.empty(values.shape)
    exact = values.float().tolist()
    for r in range(values.shape[0]):
        for c in range(values.shape[1]):
            out[r, c] = torch.tensor(exact[r][c]) * scale[r // rows, c // columns].float()
    return out


def _fp8_blocks(suffix: str, block: tuple[int, int]) -> Callable[[int, int, random.Random], Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        values = _float8(rng, rows, columns)
        scale = _scales(rng, math.ceil(rows / block[0]), math.ceil(columns / block[1]))
        return Quantised(parts={".weight": values, suffix: scale}, values=_blocked(values, scale, *block))

    return make


def _fp8_rows(suffix: str) -> Callable[[int, int, random.Random], Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        values, scale = _float8(rng, rows, columns), _scales(rng, rows, 1, torch.bfloat16)
        return Quantised(parts={".weight": values, suffix: scale}, values=_blocked(values, scale, 1, columns))

    return make


def _fp8_whole(suffix: str, shape: tuple[int, ...]) -> Callable[[int, int, random.Random], Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        values, scale = _float8(rng, rows, columns), _scales(rng, 1, 1)
        stored = {".weight": values, suffix: scale.reshape(shape), ".input_scale": torch.tensor(0.5)}
        return Quantised(parts=stored, values=_blocked(values, scale, rows, columns))

    return make


def _mxfp8(rows: int, columns: int, rng: random.Random) -> Quantised:
    values = _float8(rng, rows, columns)
    exponents = torch.tensor(_codes(rng, rows, columns // 32, 9)) + 118
    scale = torch.tensor([[2.0 ** (e - 127) for e in row] for row in exponents.tolist()])
    parts = {".weight": values, ".weight_scale_inv": exponents.to(torch.uint8)}
    return Quantised(parts=parts, values=_blocked(values, scale, 1, 32))


def _int8_rows(rows: int, columns: int, rng: random.Random) -> Quantised:
    codes, zeros = torch.tensor(_codes(rng, rows, columns, 256)) - 128, torch.tensor(_codes(rng, rows, 1, 20)) - 10
    scale = _scales(rng, rows, 1)
    parts = {
        ".weight": codes.to(torch.int8),
        ".weight_scale": scale,
        ".weight_zero_point": zeros.to(torch.int8),
    }
    return Quantised(parts=parts, values=_blocked((codes - zeros).float(), scale, 1, columns))


def _packed(bits: int, *, group: int, zeros: bool = False, order: bool = False) -> Callable[..., Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        size = group or columns
        codes = _codes(rng, rows, columns, 1 << bits)
        scale = _scales(rng, rows, columns // size, torch.bfloat16)
        middle = 1 << (bits - 1)
        zero = _codes(rng, rows, columns // size, 1 << bits) if zeros else [[middle] * (columns // size)] * rows
        group_of = [c // size for c in range(columns)]
        parts = {
            ".weight_packed": torch.tensor([pack(row, bits) for row in codes], dtype=torch.int32),
            ".weight_scale": scale,
            ".weight_shape": torch.tensor([rows, columns]),
        }
        if zeros:
            by_group = [pack([zero[r][g] for r in range(rows)], bits) for g in range(columns // size)]
            parts[".weight_zero_point"] = torch.tensor(by_group, dtype=torch.int32).T
        if order:
            rng.shuffle(group_of)
            parts[".weight_g_idx"] = torch.tensor(group_of, dtype=torch.int32)
        values = torch.empty(rows, columns)
        for r in range(rows):
            for c in range(columns):
                values[r, c] = torch.tensor(float(codes[r][c] - zero[r][group_of[c]])) * scale[r, group_of[c]].float()
        return Quantised(parts=parts, values=values)

    return make


def _fp4(codes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes as bytes, the first of each pair in the low bits, and as values."""
    octets = [[row[c] | row[c + 1] << 4 for c in range(0, len(row), 2)] for row in codes]
    return torch.tensor(octets, dtype=torch.uint8), torch.tensor([[E2M1[code] for code in row] for row in codes])


def _nvfp4(names: tuple[str, str, str], *, divided: bool) -> Callable[..., Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        octets, values = _fp4(_codes(rng, rows, columns, 16))
        scale = _float8(rng, rows, columns // 16).float().abs().to(torch.float8_e4m3fn)
        whole = torch.tensor(37.5 if divided else 0.013)
        effective = scale.float() / whole if divided else scale.float() * whole
        parts = {names[0]: octets, names[1]: scale, names[2]: whole.reshape(1) if divided else whole}
        return Quantised(parts=parts, values=_blocked(values, effective, 1, 16))

    return make


def _mxfp4_matrix(rows: int, columns: int, rng: random.Random) -> Quantised:
    octets, values = _fp4(_codes(rng, rows, columns, 16))
    exponents = torch.tensor(_codes(rng, rows, columns // 32, 9)) + 118
    scale = torch.tensor([[2.0 ** (e - 127) for e in row] for row in exponents.tolist()])
    parts = {".weight_packed": octets, ".weight_scale": exponents.to(torch.uint8)}
    return Quantised(parts=parts, values=_blocked(values, scale, 1, 32))


def _gptq(bits: int, *, less_one: bool, order: bool = False, group: int = 32) -> Callable[..., Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        size = group or columns
        codes = _codes(rng, columns, rows, 1 << bits)
        zeros = _codes(rng, columns // size, rows, 1 << bits)
        stored_zeros = [[(z - 1) % (1 << bits) if less_one else z for z in row] for row in zeros]
        scale = _scales(rng, columns // size, rows, torch.float16)
        group_of = [c // size for c in range(columns)]
        if order:
            rng.shuffle(group_of)
        down = [pack([codes[c][r] for c in range(columns)], bits) for r in range(rows)]
        parts = {
            ".qweight": torch.tensor(down, dtype=torch.int32).T,
            ".qzeros": torch.tensor([pack(row, bits) for row in stored_zeros], dtype=torch.int32),
            ".scales": scale,
            ".g_idx": torch.tensor(group_of, dtype=torch.int32),
        }
        values = torch.empty(rows, columns)
        for r in range(rows):
            for c in range(columns):
                g = group_of[c]
                values[r, c] = torch.tensor(float(codes[c][r] - zeros[g][r])) * scale[g, r].float()
        return Quantised(parts=parts, values=values)

    return make


def _awq(rows: int, columns: int, rng: random.Random) -> Quantised:
    def packed(row: list[int]) -> list[int]:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return pack([row[start + place] for start in range(0, len(row), 8) for place in order], 4)

    codes, zeros = _codes(rng, columns, rows, 16), _codes(rng, columns // 32, rows, 16)
    scale = _scales(rng, columns // 32, rows, torch.float16)
    parts = {
        ".qweight": torch.tensor([packed(row) for row in codes], dtype=torch.int32),
        ".qzeros": torch.tensor([packed(row) for row in zeros], dtype=torch.int32),
        ".scales": scale,
    }
    values = torch.empty(rows, columns)
    for r in range(rows):
        for c in range(columns):
            values[r, c] = torch.tensor(float(codes[c][r] - zeros[c // 32][r])) * scale[c // 32, r].float()
    return Quantised(parts=parts, values=values)


def _bnb4(*, nested: bool) -> Callable[..., Quantised]:
    def make(rows: int, columns: int, rng: random.Random) -> Quantised:
        count, block, nested_block = rows * columns, 64, 8
        codes = [rng.randrange(16) for _ in range(count)]
        num_blocks = math.ceil(count / block)
        table = torch.tensor(NF4)
        absmax = torch.tensor([0.05 + rng.random() for _ in range(num_blocks)])
        state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [rows, columns]}
        octets = [codes[i] << 4 | codes[i + 1] for i in range(0, count, 2)]
        parts = {
            ".weight": torch.tensor(octets, dtype=torch.uint8).reshape(-1, 1),
            ".weight.quant_map": table,
            ".weight.absmax": absmax,
        }
        if nested:
            inner = torch.linspace(-1, 1, 256)
            chosen = torch.tensor([rng.randrange(256) for _ in range(num_blocks)])
            outer = torch.tensor([0.2 + rng.random() for _ in range(math.ceil(num_blocks / nested_block))])
            state.update(nested_blocksize=nested_block, nested_dtype="float32", nested_offset=0.75)
            absmax = torch.stack([inner[c] * outer[i // nested_block] + 0.75 for i, c in enumerate(chosen.tolist())])
            parts[".weight.absmax"] = chosen.to(torch.uint8)
            parts[".weight.nested_absmax"], parts[".weight.nested_quant_map"] = outer, inner
        text = json.dumps(state).encode()
        parts[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        values = torch.stack([table[code] * absmax[i // block] for i, code in enumerate(codes)])
        return Quantised(parts=parts, values=values.reshape(rows, columns))

    return make


def _bnb8(rows: int, columns: int, rng: random.Random) -> Quantised:
    codes = torch.tensor(_codes(rng, rows, columns, 255)) - 127
    largest = _scales(rng, rows, 1).reshape(-1)
    parts = {".weight": codes.to(torch.int8), ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Quantised(parts=parts, values=_blocked(codes.float(), (largest / 127).reshape(-1, 1), 1, columns))


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


FORMS: Mapping[str, Form] = {
    "fp8-blocks": Form(
        config={"quant_method": "fp8", "weight_block_size": [40, 48], "activation_scheme": "dynamic"},
        make=_fp8_blocks(".weight_scale_inv", (40, 48)),
    ),
    "fp8-square": Form(
        config={"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"},
        make=_fp8_blocks(".weight_scale_inv", (8, 8)),
    ),
    "fp8-tensor": Form(config={"quant_method": "fp8"}, make=_fp8_whole(".weight_scale_inv", ())),
    "mxfp8": Form(config={"quant_method": "mxfp8", "weight_block_size": [1, 32]}, make=_mxfp8),
    "fbgemm-fp8": Form(config={"quant_method": "fbgemm_fp8"}, make=_fp8_rows(".weight_scale")),
    "compressed-fp8-rows": Form(config=_compressed("float-quantized"), make=_fp8_rows(".weight_scale")),
    "compressed-fp8-tensor": Form(config=_compressed("float-quantized"), make=_fp8_whole(".weight_scale", (1,))),
    "compressed-fp8-blocks": Form(
        config=_compressed("float-quantized", block_structure=[40, 48]), make=_fp8_blocks(".weight_scale", (40, 48))
    ),
    "compressed-int8": Form(config=_compressed("int-quantized"), make=_int8_rows),
    "compressed-int4": Form(config=_compressed("pack-quantized"), make=_packed(4, group=32)),
    "compressed-int4-rows": Form(config=_compressed("pack-quantized"), make=_packed(4, group=0)),
    "compressed-int4-zeros": Form(config=_compressed("pack-quantized"), make=_packed(4, group=16, zeros=True)),
    "compressed-int4-order": Form(
        config=_compressed("pack-quantized"), make=_packed(4, group=16, zeros=True, order=True)
    ),
    "compressed-int8-packed": Form(config=_compressed("pack-quantized"), make=_packed(8, group=32)),
    "compressed-nvfp4": Form(
        config=_compressed("nvfp4-pack-quantized"),
        make=_nvfp4((".weight_packed", ".weight_scale", ".weight_global_scale"), divided=True),
    ),
    "compressed-mxfp4": Form(config=_compressed("mxfp4-pack-quantized"), make=_mxfp4_matrix),
    "modelopt-nvfp4": Form(
        config={"quant_method": "modelopt", "quant_algo": "NVFP4"},
        make=_nvfp4((".weight", ".weight_scale", ".weight_scale_2"), divided=False),
    ),
    "modelopt-fp8": Form(
        config={"quant_method": "modelopt", "quant_algo": "FP8"}, make=_fp8_whole(".weight_scale", ())
    ),
    "gptq": Form(config={"quant_method": "gptq", "bits": 4, "group_size": 32}, make=_gptq(4, less_one=True)),
    "gptq-order": Form(
        config={"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        make=_gptq(4, less_one=True, order=True),
    ),
    "gptq-v2": Form(
        config={"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"},
        make=_gptq(4, less_one=False, group=0),
    ),
    "gptq-8": Form(config={"quant_method": "gptq", "bits": 8, "group_size": 32}, make=_gptq(8, less_one=True)),
    "gptq-2": Form(
        config={"quant_method": "gptq", "bits": 2, "group_size": 16}, make=_gptq(2, less_one=True, group=16)
    ),
    "awq": Form(
        config={"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, make=_awq
    ),
    "nf4": Form(config={"quant_method": "bitsandbytes", "load_in_4bit": True}, make=_bnb4(nested=False)),
    "nf4-nested": Form(config={"quant_method": "bitsandbytes", "load_in_4bit": True}, make=_bnb4(nested=True)),
    "bnb-int8": Form(config={"quant_method": "bitsandbytes", "load_in_8bit": True}, make=_bnb8),
}
"""Each form that a matrix can be stored in. Experts of gpt-oss, stacked, are a form of their own: see its tests."""
