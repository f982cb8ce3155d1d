"""Dequantization of quantized tensors by rows: GPTQ, AWQ, bitsandbytes, FP8, MXFP4.

Each class is one layout of codes, scales and zero points; its ``rows`` computes the same as the
library that wrote it, in float32, to be rounded once to the model's type.

Source: Frantar et al. 2023, arXiv:2210.17323 (GPTQ); Lin et al. 2024, arXiv:2306.00978 (AWQ);
Dettmers et al. 2022, arXiv:2208.07339 (int8); 2023, arXiv:2305.14314 (NF4, double quantization);
DeepSeek-AI 2024, arXiv:2412.19437 (blocks of fp8); Rouhani et al. 2023, arXiv:2310.10537 (MX).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stillroom.checkpoints.dtypes import BIT_TYPES, widen

if TYPE_CHECKING:
    from stillroom.checkpoints.safetensors_format import TensorEntry
    from stillroom.checkpoints.store import TensorStore

__all__ = [
    "AwqTensor",
    "BlockwiseTensor",
    "GptqTensor",
    "Int8Tensor",
    "Mxfp4Experts",
    "NestedQuantization",
    "PackedTensor",
    "QuantizedTensor",
    "ScaledTensor",
    "StoredParts",
    "unpack_bits",
]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_CACHED_PARTS = 16
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class StoredParts:
    """Stored tensors that quantized ones consist of; recently used ones stay mapped."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self._mapped: OrderedDict[str, Array] = OrderedDict()
        self._lock = Lock()

    def entry(self, name: str) -> TensorEntry:
        """Return a stored tensor's type and shape."""
        return self._store.entries[name]

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows of a tensor in the storage type."""
        entry = self.entry(name)
        data = self._store.read(name, start, stop)
        return np.frombuffer(data, BIT_TYPES[entry.dtype]).reshape(stop - start, *entry.shape[1:])

    def whole(self, name: str) -> Array:
        """Return a mapped tensor in the storage type; pages are read on access."""
        import torch

        with self._lock:
            if name not in self._mapped:
                entry = self.entry(name)
                flat = self._store.map(name).reshape(-1).view(torch.uint8).numpy()
                self._mapped[name] = flat.view(BIT_TYPES[entry.dtype]).reshape(entry.shape)
            self._mapped.move_to_end(name)
            while len(self._mapped) > _CACHED_PARTS:
                self._mapped.popitem(last=False)
            return self._mapped[name]

    def floats(self, name: str) -> Array:
        """Return a whole tensor as float32."""
        return widen(self.whole(name), self.entry(name).dtype)

    def scales(self, name: str) -> Array:
        """Return a tensor of scales as float32; bytes are exponents of two with bias 127."""
        if self.entry(name).dtype == "U8":
            return np.ldexp(np.float32(1), self.whole(name).astype(np.int32) - 127)
        return self.floats(name)


@dataclass(frozen=True)
class ScaledTensor:
    """8-bit codes with a scale per tensor, row, group or block.

    ``block`` is the number of rows and columns that share a scale. ``zero`` names the zero points,
    with the shape of the scales; empty if they are 0.
    """

    shape: tuple[int, ...]
    codes: str
    scale: str
    block: tuple[int, int]
    zero: str = ""

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Dequantize a range of rows."""
        values = widen(parts.rows(self.codes, start, stop), parts.entry(self.codes).dtype)
        if self.zero:
            zero = widen(parts.whole(self.zero), parts.entry(self.zero).dtype)
            values = values - self._spread(zero, start, stop)
        return values * self._spread(parts.scales(self.scale), start, stop)

    def _spread(self, values: Array, start: int, stop: int) -> Array:
        """Expand scales to the elements of a range of rows."""
        if values.size == 1:
            return values.reshape((1,) * len(self.shape))
        if len(self.shape) == 3:  # a row is a whole expert
            values = values.reshape(self.shape[0], *values.shape[1:])[start:stop]
            start, stop = 0, self.shape[1]
        tall, wide = self.block
        if values.ndim == 1:
            values = values[:, None]
        expanded = np.take(values, np.arange(start, stop) // tall, axis=-2)
        if expanded.shape[-1] == 1:
            return expanded
        return np.repeat(expanded, wide, axis=-1)[..., : self.shape[-1]]


@dataclass(frozen=True)
class PackedTensor:
    """Codes packed along rows in 32-bit words, with groups of columns that share a scale.

    The format of compressed-tensors for integers (``pack-quantized``), and for 4-bit floats in
    bytes. Integer codes are stored with an offset of half their range. ``order`` names the group
    index of each column. ``over`` names the global scale, a multiplier, or, with ``is_divided``, a
    divisor.
    """

    shape: tuple[int, ...]
    codes: str
    scale: str
    bits: int
    group: int
    is_float: bool = False
    zero: str = ""
    order: str = ""
    over: str = ""
    is_divided: bool = False

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Dequantize a range of rows."""
        width, packed = self.shape[1], parts.rows(self.codes, start, stop)
        half = 1 << (self.bits - 1)
        if self.is_float:
            values = _FP4[_nibbles(packed, low_first=True)[:, :width]]
        else:
            values = (unpack_bits(packed, self.bits)[:, :width] - half).astype(np.float32)
        groups = self._groups(parts)
        if self.zero:
            values -= self._zeros(parts, start, stop)[:, groups]
        return values * self._scales(parts, start, stop)[:, groups]

    def _groups(self, parts: StoredParts) -> Array:
        if self.order:
            return np.asarray(parts.whole(self.order))
        return np.arange(self.shape[1]) // self.group

    def _scales(self, parts: StoredParts, start: int, stop: int) -> Array:
        wide = parts.scales(self.scale)
        if self.over:
            over = parts.floats(self.over).reshape(-1)[:1]
            wide = wide / over if self.is_divided else wide * over
        if wide.size == 1:
            return np.broadcast_to(wide.reshape(1, 1), (stop - start, 1))
        return wide.reshape(self.shape[0], -1)[start:stop]

    def _zeros(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Return the zero points of a range of rows; packed ones are packed along columns."""
        if parts.entry(self.zero).dtype == "I8":
            return parts.rows(self.zero, start, stop).astype(np.float32)
        first = start // 32
        words = parts.whole(self.zero)[first * self.bits : -(-stop // 32) * self.bits]
        codes = unpack_bits(np.ascontiguousarray(words.T), self.bits).T
        codes = codes[start - first * 32 : stop - first * 32] - (1 << (self.bits - 1))
        return codes.astype(np.float32)


@dataclass(frozen=True)
class GptqTensor:
    """Codes packed along columns, zero points along rows, a scale per group of inputs.

    The first version of the format stores zero points minus one. The dequantized tensor is the
    transpose of the stored one: (outputs, inputs).
    """

    shape: tuple[int, ...]
    stem: str
    bits: int
    group: int
    offset: int
    has_order: bool

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Dequantize a range of rows."""
        packed = parts.whole(f"{self.stem}qweight")[:, start:stop]
        codes = unpack_bits(np.ascontiguousarray(packed.T), self.bits)
        first = start // 32
        words = slice(first * self.bits, -(-stop // 32) * self.bits)
        zeros = unpack_bits(
            np.ascontiguousarray(parts.whole(f"{self.stem}qzeros")[:, words]), self.bits
        )
        zeros = zeros[:, start - first * 32 : stop - first * 32]
        zeros = (zeros + self.offset) & ((1 << self.bits) - 1)
        scales = widen(
            parts.whole(f"{self.stem}scales")[:, start:stop],
            parts.entry(f"{self.stem}scales").dtype,
        )
        if self.has_order:
            groups = np.asarray(parts.whole(f"{self.stem}g_idx"))
        else:
            groups = np.arange(self.shape[1]) // self.group
        values: Array = (codes[:, : self.shape[1]] - zeros.T[:, groups]).astype(np.float32)
        values *= scales.T[:, groups]
        return values


@dataclass(frozen=True)
class AwqTensor:
    """4-bit codes, eight outputs per word in the order of AWQ's ``gemm`` kernel."""

    shape: tuple[int, ...]
    stem: str
    group: int

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Dequantize a range of rows."""
        groups = np.arange(self.shape[1]) // self.group
        codes = self._unpack(parts, "qweight", start, stop)
        zeros = self._unpack(parts, "qzeros", start, stop)
        name = f"{self.stem}scales"
        scales = widen(parts.whole(name)[:, start:stop], parts.entry(name).dtype)
        return (codes - zeros[groups]).T.astype(np.float32) * scales[groups].T

    def _unpack(self, parts: StoredParts, name: str, start: int, stop: int) -> Array:
        first = start // 8
        words = parts.whole(f"{self.stem}{name}")[:, first : -(-stop // 8)].view(np.uint32)
        codes = np.empty((*words.shape, 8), np.int16)
        for position, column in enumerate(_AWQ_ORDER):
            codes[..., column] = (words >> np.uint32(4 * position)) & np.uint32(15)
        return codes.reshape(len(words), -1)[:, start - first * 8 : stop - first * 8]


@dataclass(frozen=True)
class Int8Tensor:
    """Codes of bitsandbytes' int8: 127 represents the absolute maximum of a row (SCB)."""

    shape: tuple[int, ...]
    codes: str
    largest: str

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Dequantize a range of rows."""
        largest = parts.floats(self.largest).reshape(-1)[start:stop, None]
        codes = parts.rows(self.codes, start, stop).astype(np.float32)
        return codes * largest * np.float32(1 / 127)


@dataclass(frozen=True)
class NestedQuantization:
    """Quantization of the scales of a tensor."""

    block: int
    offset: float
    absmax: str
    table: str


@dataclass(frozen=True)
class BlockwiseTensor:
    """4-bit codes of bitsandbytes: indices of a table, times the maximum of a block."""

    shape: tuple[int, ...]
    codes: str
    block: int
    absmax: str
    table: str
    nested: NestedQuantization | None = None

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Dequantize a range of rows."""
        width = math.prod(self.shape[1:])
        first, last = start * width, stop * width
        packed = parts.whole(self.codes).reshape(-1)[first // 2 : -(-last // 2)]
        codes = _nibbles(packed, low_first=False)[first % 2 :][: last - first]
        runs = np.arange(first, last) // self.block
        scales = self._scales(parts, int(runs[0]), int(runs[-1]) + 1) if len(runs) else runs
        values = parts.floats(self.table).reshape(-1)[codes]
        values = values * scales[runs - (runs[0] if len(runs) else 0)]
        return values.reshape(stop - start, *self.shape[1:])

    def _scales(self, parts: StoredParts, first: int, last: int) -> Array:
        stored, nested = parts.whole(self.absmax).reshape(-1)[first:last], self.nested
        if nested is None:
            return widen(stored, parts.entry(self.absmax).dtype)
        largest = parts.floats(nested.absmax).reshape(-1)[np.arange(first, last) // nested.block]
        table = parts.floats(nested.table).reshape(-1)
        return table[stored] * largest + np.float32(nested.offset)


@dataclass(frozen=True)
class Mxfp4Experts:
    """Experts of 4-bit floats in blocks of 32 that share a power of two, as in gpt-oss.

    Stored are (experts, outputs, blocks, 16); the tensor is (experts, inputs, outputs).
    """

    shape: tuple[int, ...]
    codes: str
    scale: str

    def rows(self, parts: StoredParts, start: int, stop: int) -> Array:
        """Return a range of dequantized experts."""
        values = _FP4[_nibbles(parts.rows(self.codes, start, stop), low_first=True)]
        powers = parts.rows(self.scale, start, stop).astype(np.int32) - 127
        values = np.ldexp(values, powers[..., None])
        return values.reshape(stop - start, self.shape[2], self.shape[1]).swapaxes(1, 2)


QuantizedTensor = (
    ScaledTensor
    | PackedTensor
    | GptqTensor
    | AwqTensor
    | Int8Tensor
    | BlockwiseTensor
    | Mxfp4Experts
)
"""A quantized tensor: its dequantized ``shape``, and ``rows`` in float32."""


def unpack_bits(words: Array, bits: int) -> Array:
    """Unpack codes packed contiguously in each row's 32-bit words, lowest bits first.

    Args:
        words: (rows, words), 32-bit.
        bits: Bits per code, 1 to 8; a code may span two words.

    Returns:
        (rows, codes), int32; padded to a multiple of 32 codes.
    """
    count = -(-words.shape[1] // bits)
    filled = np.zeros((len(words), count * bits), np.uint32)
    filled[:, : words.shape[1]] = words.view(np.uint32)
    runs = filled.reshape(len(words), count, bits)
    codes = np.empty((len(words), count, 32), np.int32)
    for position in range(32):
        word_index, shift = divmod(position * bits, 32)
        code = runs[..., word_index] >> np.uint32(shift)
        if shift + bits > 32:
            code = code | (runs[..., word_index + 1] << np.uint32(32 - shift))
        codes[..., position] = code & np.uint32((1 << bits) - 1)
    return codes.reshape(len(words), -1)


def _nibbles(packed: Array, *, low_first: bool) -> Array:
    """Return two codes per byte, along the last axis."""
    low, high = packed & 15, packed >> 4
    pair = (low, high) if low_first else (high, low)
    return np.stack(pair, axis=-1).reshape(*packed.shape[:-1], -1)
