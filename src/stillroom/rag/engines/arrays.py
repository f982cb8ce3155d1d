"""Arrays of an index in one immutable file each, in the safetensors format, read by mapping it.

Equal arrays give equal bytes. Opening reads the header alone; pages come from the disk when they
are first touched. Does not know what the arrays mean.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints.header import build_header, read_header
from stillroom.errors import CheckpointError, IntegrityError
from stillroom.jobs import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Arrays", "map_arrays", "shrink", "write_arrays"]

Arrays = Mapping[str, "NDArray[Any]"]
_TYPES: Mapping[str, str] = {
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "I8": "<i1",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
}
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays under their names into one file, atomically.

    Raises:
        ResourceError: If the disk is full.
    """
    # Wide types first, so that every array starts at a multiple of its item's size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    entries, start = [], 0
    for name, values in ordered:
        stop = start + values.nbytes
        entries.append((name, _NAMES[values.dtype], values.shape, start, stop))
        start = stop
    with atomic_write(path, "wb") as file:
        file.write(build_header(entries))
        for _, values in ordered:
            file.write(np.ascontiguousarray(values).data)


def map_arrays(
    path: Path, names: Iterable[str], check: Callable[[Arrays], bool]
) -> dict[str, NDArray[Any]]:
    """Map the arrays of a file into memory; changes of them stay in memory.

    Args:
        path: What ``write_arrays`` wrote.
        names: Which arrays it must hold.
        check: Whether the arrays fit each other.

    Raises:
        IntegrityError: If the file is missing, cut off, or its arrays are others.
    """
    try:
        entries = read_header(path)
        with path.open("rb") as file:
            # A private mapping may be written to, which torch asks of what it shares.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        arrays: dict[str, NDArray[Any]] = {}
        for name in names:
            entry = entries[name]
            count = int(np.prod(entry.shape))
            flat = np.frombuffer(mapped, dtype=_TYPES[entry.dtype], count=count, offset=entry.start)
            arrays[name] = flat.reshape(entry.shape)
        if not check(arrays):
            raise ValueError("its arrays do not fit each other")
    except (CheckpointError, OSError, KeyError, ValueError, IndexError) as error:
        raise IntegrityError(
            f"{path.name} cannot be read: {error}",
            code="rag.index-damaged",
            where=str(path),
            expected=f"the {path.name} that the job wrote",
            next="build the index again with --overwrite",
        ) from error
    return arrays


def shrink(values: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return values, none below 0, in the smallest unsigned type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
