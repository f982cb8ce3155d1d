"""Headers of safetensors files: what is where, checked before any of it is believed.

A file is 8 bytes of length (little-endian), that many bytes of JSON, then the tensors' bytes. This
module reads and writes the first two, imports no tensor library, and knows nothing of shards.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError

__all__ = [
    "DTYPE_SIZES",
    "FLOATS",
    "LONG_NAMES",
    "TensorEntry",
    "build_header",
    "parse_header",
    "read_header",
]

DTYPE_SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
LONG_NAMES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}
"""The name that torch and config.json give each storage type."""
FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"})
_MAX_HEADER = 100_000_000
_MAX_RANK = 32


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its type and shape, and its bytes counted from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """How many bytes the tensor takes."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """How many bytes one row (one index of the first axis) takes; a scalar is one row."""
        return math.prod(self.shape[1:]) * DTYPE_SIZES[self.dtype]

    @property
    def rows(self) -> int:
        """The length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read and check the header of one safetensors file.

    Raises:
        CheckpointError: If the file is truncated, or its header is too large, no JSON, names a
            tensor twice, or claims a type, shape or place that cannot be.
    """
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return parse_header(path, path.stat().st_size, read)


def parse_header(
    path: Path, size: int, read: Callable[[int, int], bytes]
) -> dict[str, TensorEntry]:
    """Check the header of a safetensors file of ``size`` bytes, wherever it lies.

    Args:
        path: What errors call it.
        size: Of the whole file.
        read: Gives the bytes from the first to before the second place.

    Raises:
        CheckpointError: As ``read_header`` does.
    """
    head = read(0, 8) if size >= 8 else b""
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if len(head) < 8 or length > size - 8 or length < 2:
        raise _broken(path, f"its header claims {length} bytes of a file of {size}")
    if length > _MAX_HEADER:
        raise _broken(path, f"its header claims {length} bytes, over {_MAX_HEADER}")
    fields = _parse(path, read(8, 8 + length))
    fields.pop("__metadata__", None)
    begin = 8 + length
    entries = {name: _read_entry(path, name, value, begin) for name, value in fields.items()}
    _check_cover(path, entries.values(), begin, size)
    return entries


def build_header(entries: Iterable[tuple[str, str, tuple[int, ...], int, int]]) -> bytes:
    """Return the length and JSON of a header, padded so that the data starts 8-byte aligned.

    Args:
        entries: Name, type, shape, start and stop of each tensor, counted from the data's start.
    """
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, dtype, shape, start, stop in entries:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise _broken(path, f"its header holds the key {twice!r:.80} twice")
        return fields

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not begin with a brace")
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON ({error})") from error
    return dict(fields)


def _read_entry(path: Path, name: str, value: Any, begin: int) -> TensorEntry:
    where = f"the entry of {name!r:.80}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{where} is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        raise CheckpointError(
            f"tensor {name!r:.80} has the type {dtype!r:.40}, which is not known here",
            code="checkpoint.dtype",
            where=str(path),
            expected=f"one of: {', '.join(DTYPE_SIZES)}",
            next="convert the checkpoint to bfloat16, float16 or float32",
        )
    if not _are_counts(shape) or len(shape) > _MAX_RANK:
        raise _broken(path, f"{where} has the shape {shape!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, f"{where} has the offsets {offsets!r:.80}")
    entry = TensorEntry(name, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])
    if math.prod(shape) * DTYPE_SIZES[dtype] != entry.size_bytes:
        raise _broken(
            path, f"{where} claims {entry.size_bytes} bytes for {dtype} of shape {tuple(shape)}"
        )
    return entry


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


def _check_cover(path: Path, entries: Iterable[TensorEntry], begin: int, size: int) -> None:
    """Hold the format's rule: the tensors lie end to end and fill the file."""
    end, before = begin, "the header"
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.stop > size:
            raise _broken(path, f"tensor {entry.name!r:.80} ends at byte {entry.stop} of {size}")
        if entry.start < end:
            raise _broken(path, f"tensor {entry.name!r:.80} overlaps {before!r:.80}")
        if entry.start > end:
            raise _broken(path, f"{entry.start - end} bytes before {entry.name!r:.80} are unnamed")
        end, before = entry.stop, entry.name
    if end != size:
        raise _broken(path, f"{size - end} bytes at its end belong to no tensor")


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a sound safetensors file: {what}",
        code="checkpoint.broken",
        where=str(path),
        expected="a complete file as its maker wrote it",
        next="download or copy the file again",
    )
