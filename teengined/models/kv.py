"""The KV pool of a stage: blocks of keys and values for each of its layers, shared by all sequences through tables.

Shape suffixes: N blocks, K key-value heads, T tokens of a block, D width of a key, E width of a value, R new tokens,
B sequences, M blocks of the longest table, C = M * T.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from teengined.core.errors import InternalError, PackageError
from teengined.interfaces.driver import Device
from teengined.models.kv_pages import PagesAhead
from teengined.models.kv_rows import BlockRows, LateRows

__all__ = ["KVPool", "LayerBlocks", "PoolShape", "layer_bytes"]

# A cache line: where one of a layer's tensors starts.
_ALIGNMENT_BYTES = 64
_SCALE_BYTES = 4
_LARGEST = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """What the pool is to hold."""

    num_blocks: int
    block_tokens: int
    elements_per_token: Mapping[int, int]
    """By layer of the stage: numbers kept for one token, keys and values together."""
    num_kv_heads: int
    """Heads with a scale of their own where numbers are kept as int8."""
    dtype: torch.dtype
    """Of what attention reads: the stage's compute dtype."""
    quantised: bool = False
    """Keep int8, with one fp32 scale for each token and head of keys, and one of values."""


def layer_bytes(shape: PoolShape, layer: int) -> int:
    """Return the bytes of one layer's part of the pool."""
    elements = shape.elements_per_token[layer]
    if shape.quantised:
        token_bytes = elements + 2 * shape.num_kv_heads * _SCALE_BYTES
    else:
        token_bytes = elements * shape.dtype.itemsize
    return shape.num_blocks * shape.block_tokens * token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlocks:
    """One layer's part of the pool, as views."""

    keys_NKTD: torch.Tensor
    values_NKTE: torch.Tensor
    key_scales_NKT: torch.Tensor | None = None
    """With int8 only."""
    value_scales_NKT: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    """Of what `gather` returns."""

    def write(self, rows_RK: torch.Tensor, keys_1KRD: torch.Tensor, values_1KRE: torch.Tensor) -> None:
        """Store new tokens; `rows_RK` says where each token's heads go, counted over blocks, heads and tokens."""
        rows = rows_RK.reshape(-1)
        _write(self.keys_NKTD, self.key_scales_NKT, rows, keys_1KRD)
        _write(self.values_NKTE, self.value_scales_NKT, rows, values_1KRE)

    def gather(self, tables_BM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys (B, K, C, D) and values (B, K, C, E) of whole blocks, one after another."""
        num_heads = self.keys_NKTD.shape[1]
        heads_K1 = torch.arange(num_heads, device=tables_BM.device)[:, None]
        places_BKM = tables_BM.long()[:, None, :] * num_heads + heads_K1
        keys = _gather(self.keys_NKTD, self.key_scales_NKT, places_BKM, self.dtype)
        return keys, _gather(self.values_NKTE, self.value_scales_NKT, places_BKM, self.dtype)

    def tensors(self) -> list[torch.Tensor]:
        """Return all of it, blocks first on every axis."""
        scales = [scale for scale in (self.key_scales_NKT, self.value_scales_NKT) if scale is not None]
        return [self.keys_NKTD, self.values_NKTE, *scales]


class KVPool:
    """Takes all its memory from the device when it is made, and cuts a layer's part to shape at its first use.

    Only then are a layer's heads and widths known. On a CPU no pages are touched but those that tokens have reached,
    and those just ahead, so a large pool costs what is written into it.
    """

    def __init__(self, device: Device, shape: PoolShape) -> None:
        """Allocate.

        Raises:
            OutOfDeviceMemory: the device's budget has no room for it.
        """
        self.shape = shape
        self._device = device
        self._starts: dict[int, int] = {}
        end = 0
        for layer in shape.elements_per_token:
            self._starts[layer] = end
            end += -(-layer_bytes(shape, layer) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._buffer: torch.Tensor | None = device.allocate(end) if end else None
        if self._buffer is not None and self._buffer.device.type != "cpu":
            # A block's unwritten tokens are multiplied by a weight of 0, which leaves NaN what it is.
            self._buffer.zero_()
        self._layers: dict[int, LayerBlocks] = {}
        self._pages: PagesAhead | None = None
        self._rows = BlockRows({layer: layer_bytes(shape, layer) // shape.num_blocks for layer in self._starts})
        self._late = LateRows(self._rows)

    @property
    def torch_device(self) -> torch.device:
        """Where the blocks lie."""
        return self._device.torch_device

    def layer(self, layer: int, keys_1KRD: torch.Tensor, values_1KRE: torch.Tensor) -> LayerBlocks:
        """Return a layer's blocks, cut to the shape of these new keys and values at the first call.

        Raises:
            PackageError: the model keeps more for a token than its manifest says.
        """
        if layer not in self._layers:
            self._layers[layer] = self._cut(layer, keys_1KRD, values_1KRE)
            self._late.give(layer, self._layers[layer].tensors())
            if self._is_cut:
                self._late.clear()
                if self.torch_device.type == "cpu":
                    self._pages = PagesAhead([tensor for each in self._layers.values() for tensor in each.tensors()])
        return self._layers[layer]

    @property
    def _is_cut(self) -> bool:
        return len(self._layers) == len(self._starts)

    @torch.inference_mode()
    def clear(self, blocks: Sequence[int]) -> None:
        """Forget what blocks held, before they get a new owner: one sequence's NaN must not become another's."""
        self._late.forget(blocks)
        if not blocks or not self._layers:
            return
        index = torch.tensor(blocks, device=self.torch_device)
        with torch.inference_mode():  # as the views were made
            if self._pages is not None:
                self._pages.reach(max(blocks))
            for layer in self._layers.values():
                for tensor in layer.tensors():
                    tensor.index_fill_(0, index, 0)

    @torch.inference_mode()
    def clear_tails(self, ends: Mapping[int, int]) -> None:
        """Forget what blocks hold from a token on, counted in the block: it is another sequence's, and may be NaN."""
        self._late.end(ends)
        with torch.inference_mode():  # as the views were made
            for layer in self._layers.values():
                for tensor in layer.tensors():
                    for block, end in ends.items():
                        tensor[block, :, end:] = 0

    @torch.inference_mode()
    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy blocks in every layer, all reads before all writes."""
        self._late.copy(sources, targets)
        if not sources or not self._layers:
            return
        source = torch.tensor(sources, device=self.torch_device)
        target = torch.tensor(targets, device=self.torch_device)
        with torch.inference_mode():  # as the views were made
            for layer in self._layers.values():
                for tensor in layer.tensors():
                    tensor.index_copy_(0, target, tensor.index_select(0, source))

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers together."""
        return self._rows.row_bytes

    @torch.inference_mode()
    def save(self, blocks: Sequence[int], rows_SB: torch.Tensor, slots: Sequence[int]) -> None:
        """Copy blocks of every layer into rows of host memory, of `block_bytes` bytes or more."""
        with torch.inference_mode():  # as the views were made
            self._rows.save(self._tensors(), blocks, rows_SB, slots)

    @torch.inference_mode()
    def load(self, blocks: Sequence[int], rows_SB: torch.Tensor, slots: Sequence[int]) -> None:
        """Copy rows that `save` filled into blocks of every layer."""
        if not self._is_cut:
            self._late.add(blocks, rows_SB, slots)
        with torch.inference_mode():  # as the views were made
            self._rows.load(self._tensors(), blocks, rows_SB, slots)

    def _tensors(self) -> dict[int, list[torch.Tensor]]:
        return {layer: self._layers[layer].tensors() for layer in self._starts if layer in self._layers}

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._layers.clear()
        self._pages = None
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._device.free(buffer)

    def _cut(self, layer: int, keys_1KRD: torch.Tensor, values_1KRE: torch.Tensor) -> LayerBlocks:
        if self._buffer is None or layer not in self._starts:
            raise InternalError(f"layer {layer} is not one of this stage's pool")
        shape, buffer = self.shape, self._buffer
        wanted = keys_1KRD.shape[1] * keys_1KRD.shape[3] + values_1KRE.shape[1] * values_1KRE.shape[3]
        heads = max(keys_1KRD.shape[1], values_1KRE.shape[1])
        if wanted > shape.elements_per_token[layer] or (shape.quantised and heads > shape.num_kv_heads):
            raise PackageError(
                f"layer {layer} keeps {wanted} numbers of {heads} heads for each token; the manifest and config.json"
                f" say {shape.elements_per_token[layer]} of {shape.num_kv_heads}",
                hint="convert the model again",
            )
        start = self._starts[layer]
        region = buffer[start : start + layer_bytes(shape, layer)]
        keys, region = self._take(region, keys_1KRD, shape)
        values, region = self._take(region, values_1KRE, shape)
        if not shape.quantised:
            return LayerBlocks(keys_NKTD=keys, values_NKTE=values, dtype=shape.dtype)
        scales = region[: region.numel() // _SCALE_BYTES * _SCALE_BYTES].view(torch.float32)
        split = keys.shape[:3].numel()
        return LayerBlocks(
            keys_NKTD=keys,
            values_NKTE=values,
            key_scales_NKT=scales[:split].view(keys.shape[:3]),
            value_scales_NKT=scales[split : split + values.shape[:3].numel()].view(values.shape[:3]),
            dtype=shape.dtype,
        )

    @staticmethod
    def _take(region: torch.Tensor, states_1KRD: torch.Tensor, shape: PoolShape) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the view for such keys or values at the start of `region`, and the rest."""
        _, num_heads, _, width = states_1KRD.shape
        whole = torch.Size((shape.num_blocks, num_heads, shape.block_tokens, width))
        dtype = torch.int8 if shape.quantised else shape.dtype
        end = whole.numel() * dtype.itemsize
        return region[:end].view(dtype).view(whole), region[end:]


def _write(
    blocks_NKTD: torch.Tensor, scales_NKT: torch.Tensor | None, rows: torch.Tensor, states_1KRD: torch.Tensor
) -> None:
    width = blocks_NKTD.shape[-1]
    states = states_1KRD[0].transpose(0, 1).reshape(-1, width)
    if scales_NKT is not None:
        states, scales = _quantise(states)
        scales_NKT.view(-1).index_copy_(0, rows, scales)
    blocks_NKTD.view(-1, width).index_copy_(0, rows, states.to(blocks_NKTD.dtype))


def _quantise(states_SD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 numbers and the scale of each row, symmetric, with a row's largest at 127. NaN stays NaN."""
    states_SD = states_SD.float()
    amax_S = states_SD.abs().amax(-1)
    scale_S = torch.where(amax_S == 0, torch.ones_like(amax_S), amax_S / _LARGEST)
    return (states_SD / scale_S[:, None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8), scale_S


def _gather(
    blocks_NKTD: torch.Tensor, scales_NKT: torch.Tensor | None, places_BKM: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return (B, K, C, D): a block of one head is one contiguous run, so that nothing is moved twice."""
    num_blocks, num_heads, block_tokens, width = blocks_NKTD.shape
    num_rows, _, blocks_each = places_BKM.shape
    places = places_BKM.reshape(-1)
    whole = (num_rows, num_heads, blocks_each * block_tokens, width)
    states = blocks_NKTD.view(num_blocks * num_heads, -1).index_select(0, places).view(whole)
    if scales_NKT is None:
        return states
    scales = scales_NKT.view(num_blocks * num_heads, -1).index_select(0, places).view(*whole[:3], 1)
    return (states.float() * scales).to(dtype)
