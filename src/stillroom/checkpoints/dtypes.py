"""Conversion of dtypes (bfloat16, float8) to and from the floats of NumPy.

numpy has no bfloat16 and no 8-bit floats. bfloat16 is the upper half of a float32, so widening is a
shift and narrowing rounds to nearest, ties to even; the 8-bit types use lookup tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np

__all__ = ["BIT_TYPES", "has_not_finite", "narrow", "widen"]

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

BIT_TYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.uint8),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E5M2": np.dtype(np.uint8),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
"""The numpy type of each storage type; unsigned integers for those that numpy lacks."""
_INFINITY: Mapping[str, int] = {
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F32": 0x7F80_0000,
    "F64": 0x7FF0_0000_0000_0000,
}


def widen(bits: Array, kind: str, dtype: Any = np.float32) -> Array:
    """Convert stored values to floats, possibly sharing memory with the input.

    Args:
        bits: Stored values, (any shape), of ``BIT_TYPES[kind]``.
        kind: Storage type.
        dtype: float32 or float64; use float64 for stored float64, which float32 would narrow.
    """
    if kind == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= np.uint32(16)
        floats = wide.view(np.float32)
    elif kind in ("F8_E4M3", "F8_E5M2"):
        floats = _table(kind)[bits]
    else:
        floats = bits
    return floats.astype(dtype, copy=False)


def narrow(values: Array, kind: str) -> Array:
    """Convert floats to a storage type, rounding to nearest, ties to even; NaN stays NaN.

    Args:
        values: float32 or float64, (any shape).
        kind: Storage type.
    """
    if kind == "BF16":
        values = values.astype(np.float32, copy=False)
        contiguous = np.ascontiguousarray(values)
        bits = contiguous.view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        if np.isnan(contiguous.max(initial=0)):  # rounding overflows for some NaNs
            nan = np.isnan(contiguous)
            rounded[nan] = bits[nan] >> np.uint32(16) | np.uint32(0x40)
        return rounded.astype(np.uint16).reshape(values.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind in ("F8_E4M3", "F8_E5M2"):
            return _narrow_8bit(values, kind)
        return values.astype(BIT_TYPES[kind], order="C", copy=False)


def has_not_finite(bits: Array, kind: str) -> bool:
    """Return whether stored values include an infinity or NaN."""
    if not bits.size:
        return False
    if kind in _INFINITY:
        # Values that are not finite have the largest bit patterns of their sign; two maxima are
        # much cheaper than an elementwise test.
        width = bits.itemsize
        signed, unsigned = bits.view(f"i{width}"), bits.view(f"u{width}")
        sign = 1 << (8 * width - 1)
        return bool(signed.max() >= _INFINITY[kind] or unsigned.max() >= sign | _INFINITY[kind])
    if kind == "F8_E4M3":  # E4M3 has no infinity
        return bool(((bits & 0x7F) == 0x7F).any())
    if kind == "F8_E5M2":
        return bool(((bits & 0x7F) >= 0x7C).any())
    return not bool(np.isfinite(bits).all())


@cache
def _table(kind: str) -> Array:
    """Return the value of every 8-bit pattern, (256,), float32."""
    patterns = np.arange(256)
    exponent_bits, bias = (4, 7) if kind == "F8_E4M3" else (5, 15)
    mantissa_bits = 7 - exponent_bits
    exponent = (patterns >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (patterns & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    magnitude = np.where(
        exponent == 0,
        mantissa * 2.0 ** (1 - bias),
        (1 + mantissa) * 2.0 ** (exponent - bias).astype(np.float64),
    )
    if kind == "F8_E4M3":
        magnitude[(patterns & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        magnitude[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    return np.where(patterns >= 128, -magnitude, magnitude).astype(np.float32)


def _narrow_8bit(values: Array, kind: str) -> Array:
    """Round to the nearest 8-bit value, ties to the even pattern; overflow becomes NaN."""
    table = _table(kind)[:128].astype(np.float64)
    count = 127 if kind == "F8_E4M3" else 124
    finite = table[:count]
    magnitude = np.abs(values.astype(np.float64))
    above = np.searchsorted(finite, magnitude).clip(1, count - 1)
    middle = (finite[above - 1] + finite[above]) / 2
    low = (magnitude < middle) | ((magnitude == middle) & (above % 2 == 1))
    bits = np.where(low, above - 1, above).astype(np.uint8)
    limit = finite[-1] + (finite[-1] - finite[-2]) / 2
    bits[~(magnitude < limit)] = 0x7F
    return bits | (np.signbit(values).astype(np.uint8) << 7)
