"""Safetensors headers, validated before use, and sharding of files to be written (``plan_shards``).

A file is 8 bytes of length (little-endian), that many bytes of JSON, then the tensors' bytes. This
module reads and writes the first two, and imports no tensor library. The layout depends on names,
types, shapes and the shard size only, so that the same tensors give the same bytes in any order.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError

__all__ = [
    "DTYPE_SIZES",
    "FLOATS",
    "LONG_NAMES",
    "ShardLayout",
    "TensorEntry",
    "TensorLocation",
    "TensorShape",
    "build_header",
    "is_crowded",
    "parse_header",
    "plan_shards",
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

"""The name of each storage type in torch and config.json."""

FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"})

_MAX_TENSORS = 1 << 17

"""Maximum tensors of one file: 1.4 times the 91,000 of all files of DeepSeek-V3."""

_MAX_HEADER = 40_000_000
_MAX_RANK = 32
_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: type, shape, and byte range from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Size of a row (an index of the first axis) in bytes; a scalar is one row."""
        return math.prod(self.shape[1:]) * DTYPE_SIZES[self.dtype]

    @property
    def rows(self) -> int:
        """Length of the first axis; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    def row_ranges(self, block_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of blocks of whole rows, each of about ``block_bytes``."""
        step = max(1, block_bytes // max(self.row_bytes, 1))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read and validate the header of one safetensors file.

    Raises:
        CheckpointError: If the file is truncated, or its header is too large, not JSON, has too
            many or duplicate tensors, or an invalid type, shape or offset.
    """
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return parse_header(path, path.stat().st_size, read)


def parse_header(
    path: Path, size: int, read: Callable[[int, int], bytes]
) -> dict[str, TensorEntry]:
    """Validate the header of a local or remote safetensors file.

    Args:
        path: Path named in errors.
        size: Size of the whole file in bytes.
        read: Returns the bytes from the first offset to before the second.

    Raises:
        CheckpointError: As for ``read_header``.
    """
    head = read(0, 8) if size >= 8 else b""
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if len(head) < 8 or length > size - 8 or length < 2:
        raise _broken(path, f"its header claims {length} bytes of a file of {size}")
    if length > _MAX_HEADER:
        raise _broken(path, f"its header claims {length} bytes, over {_MAX_HEADER}")
    text = read(8, 8 + length)
    if is_crowded(text, _MAX_TENSORS, lists=2, commas=8):
        raise _broken(path, f"its header names more than {_MAX_TENSORS} tensors")
    fields = _parse(path, text)
    fields.pop("__metadata__", None)
    data_start = 8 + length
    entries = {name: _read_entry(path, name, value, data_start) for name, value in fields.items()}
    _check_cover(path, entries.values(), data_start, size)
    return entries


def is_crowded(text: bytes, entries: int, *, lists: int, commas: int) -> bool:
    """Return whether JSON has more values than a number of entries needs, before parsing it.

    A parser creates objects of a hundred bytes from every two bytes of ``[]`` or ``0,``: counting
    the delimiters bounds the cost of a hostile header without allocating memory.

    Args:
        text: The JSON.
        entries: Maximum number of entries, each with at most one mapping.
        lists: Maximum number of lists per entry.
        commas: Maximum number of commas per entry, including those in strings.
    """
    spare = 64  # the mapping around, metadata, a few long shapes
    return any(
        text.count(mark) > entries * limit + spare
        for mark, limit in ((b"{", 1), (b"[", lists), (b",", commas))
    )


def build_header(entries: Iterable[tuple[str, str, tuple[int, ...], int, int]]) -> bytes:
    """Return the length and JSON of a header, padded so that the data starts 8-byte aligned.

    Args:
        entries: Name, type, shape, start and stop of each tensor, relative to the data's start.
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
            raise _broken(path, f"its header has the key {twice!r:.80} twice")
        return fields

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not start with a brace")
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not JSON ({error})") from error
    return dict(fields)


def _read_entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise _bad_entry(path, name, "is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        raise CheckpointError(
            f"tensor {name!r:.80} has the unsupported type {dtype!r:.40}",
            code="checkpoint.dtype",
            where=str(path),
            expected=f"one of: {', '.join(DTYPE_SIZES)}",
            next="convert the checkpoint to bfloat16, float16 or float32",
        )
    if not _are_counts(shape) or len(shape) > _MAX_RANK:
        raise _bad_entry(path, name, f"has the shape {shape!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad_entry(path, name, f"has the offsets {offsets!r:.80}")
    start, stop = offsets
    if math.prod(shape) * DTYPE_SIZES[dtype] != stop - start:
        claim = f"claims {stop - start} bytes for {dtype} of shape {tuple(shape)}"
        raise _bad_entry(path, name, claim)
    return TensorEntry(name, dtype, tuple(shape), data_start + start, data_start + stop)


def _are_counts(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 -- a generator takes twice as long per tensor
        if type(item) is not int or not 0 <= item < 2**63:
            return False
    return True


def _bad_entry(path: Path, name: str, problem: str) -> CheckpointError:
    return _broken(path, f"the entry of {name!r:.80} {problem}")


def _check_cover(path: Path, entries: Iterable[TensorEntry], data_start: int, size: int) -> None:
    """Check that the tensors are contiguous and fill the file, as the format requires."""
    end, before = data_start, "the header"
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


def _broken(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is not a valid safetensors file: {problem}",
        code="checkpoint.broken",
        where=str(path),
        expected="a complete, unmodified file",
        next="download or copy the file again",
    )


TensorShape = tuple[str, tuple[int, ...]]

"""A tensor's storage type by its safetensors name, and its shape."""


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """Position of a tensor to be written: file and first byte."""

    file: str
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Size of an index of the first axis in bytes."""
        return math.prod(self.shape[1:]) * DTYPE_SIZES[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Headers and sizes of all shards, positions of all tensors, and the index file."""

    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]
    locations: Mapping[str, TensorLocation]
    index: str


def plan_shards(shapes: Mapping[str, TensorShape], shard_size: int) -> ShardLayout:
    """Assign tensors to shards in order of name, up to ``shard_size`` bytes each.

    A larger tensor gets its own shard. A single shard is ``model.safetensors`` without an index, as
    in transformers.

    Args:
        shapes: Type and shape of every tensor by name.
        shard_size: Maximum bytes of tensors per file.
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(shapes):
        dtype, shape = shapes[name]
        size = math.prod(shape) * DTYPE_SIZES[dtype]
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    headers, sizes, locations = {}, {}, {}
    for number, names in enumerate(groups, 1):
        file = _name_shard(number, len(groups))
        rows, end = [], 0
        # Wider types first: each then starts at a multiple of its size.
        for name in sorted(names, key=lambda name: (-DTYPE_SIZES[shapes[name][0]], name)):
            dtype, shape = shapes[name]
            stop = end + math.prod(shape) * DTYPE_SIZES[dtype]
            rows.append((name, dtype, shape, end, stop))
            end = stop
        headers[file] = build_header(rows)
        sizes[file] = len(headers[file]) + end
        for name, dtype, shape, start, _ in rows:
            locations[name] = TensorLocation(file, len(headers[file]) + start, dtype, shape)
    return ShardLayout(headers, sizes, locations, _index(locations) if len(groups) > 1 else "")


def _name_shard(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(locations: Mapping[str, TensorLocation]) -> str:
    total = sum(location.size_bytes for location in locations.values())
    homes = {name: locations[name].file for name in sorted(locations)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": homes}, indent=2) + "\n"
