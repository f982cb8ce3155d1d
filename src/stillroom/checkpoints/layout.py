"""Layout: which tensor lies at which byte of which shard, known before any is written.

The layout follows from names, types, shapes and the shard size alone, so that the same tensors give
the same bytes in whatever order they come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from stillroom.checkpoints.header import DTYPE_SIZES, build_header

__all__ = ["Layout", "Place", "Shape", "lay_out"]

Shape = tuple[str, tuple[int, ...]]
"""A tensor's storage type by its safetensors name, and its shape."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor goes: the file, the first byte in it, the bytes a row takes."""

    file: str
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """How many bytes one index of the first axis takes."""
        return math.prod(self.shape[1:]) * DTYPE_SIZES[self.dtype]

    @property
    def size_bytes(self) -> int:
        """How many bytes the tensor takes."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Layout:
    """Every shard with its header and size, every tensor with its place, and the index file."""

    headers: Mapping[str, bytes]
    sizes: Mapping[str, int]
    places: Mapping[str, Place]
    index: str

    @property
    def total_bytes(self) -> int:
        """The bytes of all files."""
        return sum(self.sizes.values())


def lay_out(shapes: Mapping[str, Shape], shard_size: int) -> Layout:
    """Place tensors in order of name, filling each shard up to ``shard_size`` bytes.

    A tensor larger than that gets a shard of its own. One shard is ``model.safetensors`` without an
    index, as transformers writes it.

    Args:
        shapes: Type and shape of every tensor by name.
        shard_size: Most bytes of tensors in one file.
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
    headers, sizes, places = {}, {}, {}
    for number, names in enumerate(groups, 1):
        file = _name_shard(number, len(groups))
        rows, end = [], 0
        # Wider types first: each then starts at a multiple of its own size.
        for name in sorted(names, key=lambda name: (-DTYPE_SIZES[shapes[name][0]], name)):
            dtype, shape = shapes[name]
            stop = end + math.prod(shape) * DTYPE_SIZES[dtype]
            rows.append((name, dtype, shape, end, stop))
            end = stop
        headers[file] = build_header(rows)
        sizes[file] = len(headers[file]) + end
        for name, dtype, shape, start, _ in rows:
            places[name] = Place(file, len(headers[file]) + start, dtype, shape)
    return Layout(headers, sizes, places, _index(places) if len(groups) > 1 else "")


def _name_shard(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(places: Mapping[str, Place]) -> str:
    total = sum(place.size_bytes for place in places.values())
    homes = {name: places[name].file for name in sorted(places)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": homes}, indent=2) + "\n"
