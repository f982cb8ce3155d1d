"""Reading stored tensors as numpy arrays, and writing folders of tensors that appear whole."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stillroom.checkpoints.header import DTYPE_SIZES, TensorEntry, build_header, read_header
from stillroom.checkpoints.numbers import BIT_TYPES, narrow, widen
from stillroom.checkpoints.store import SafetensorsStore
from stillroom.errors import DataError
from stillroom.jobs import atomic_write, replace_folder, sync_folder
from stillroom.jobs.files import full_disk_as_error
from stillroom.merge.method import Array
from stillroom.objects import is_address

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint

__all__ = [
    "Readable",
    "TensorFile",
    "ToWrite",
    "new_folder",
    "open_checkpoint",
    "read_bits",
    "read_rows",
    "refuse_existing",
    "resolve_path",
    "row_steps",
    "tile_rows",
    "write_json",
    "write_tensors",
]

_TILE = 1 << 16
_LEAST_ROWS = 8


class Readable(Protocol):
    """What gives stored rows by name: a checkpoint, or one file of tensors."""

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's type and shape."""

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of some rows."""


class TensorFile:
    """One safetensors file, its header checked, its tensors read when asked for."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            CheckpointError: If it is not a sound safetensors file.
        """
        self.path = path
        entries = read_header(path)
        self.entries: Mapping[str, TensorEntry] = entries
        self._store = SafetensorsStore(dict.fromkeys(entries, path), entries)

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's type and shape."""
        return self.entries[name]

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of some rows."""
        return self._store.read(name, start, stop)

    def array(self, name: str, dtype: Any = np.float64) -> Array:
        """Return a whole tensor as floats."""
        return read_rows(self, name, dtype=dtype)


def read_rows(
    source: Readable, name: str, start: int = 0, stop: int | None = None, *, dtype: Any = np.float32
) -> Array:
    """Return rows of a stored tensor as floats, (rows, ...), in memory of their own."""
    entry = source.entry(name)
    stop = entry.rows if stop is None else stop
    return widen(read_bits(source, name, start, stop), entry.dtype, dtype)


def read_bits(source: Readable, name: str, start: int, stop: int) -> Array:
    """Return rows of a tensor as they are stored; a scalar is one row of shape ()."""
    entry = source.entry(name)
    data: Any = source.read(name, start, stop)
    bits: Array = np.frombuffer(data, BIT_TYPES[entry.dtype])
    return bits.reshape((stop - start, *entry.shape[1:]) if entry.shape else ())


def row_steps(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of row blocks that depend on the shape alone."""
    rows, step = (shape[0] if shape else 1), tile_rows(shape)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def tile_rows(shape: Sequence[int]) -> int:
    """Return how many rows make a block of about 65,536 numbers, a power of two."""
    rows = max(_LEAST_ROWS, _TILE // max(math.prod(shape[1:]), 1))
    return int(1 << (rows.bit_length() - 1))


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace what lies there, unless asked to.

    Raises:
        DataError: If ``folder`` exists and may not be replaced.
    """
    if folder.exists() and not overwrite:
        raise DataError(
            f"{folder} exists already",
            code="data.exists",
            where=str(folder),
            expected="a folder that does not exist yet",
            next="choose another --out, or add --overwrite",
        )


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a neighbor to write in, which becomes ``folder`` when the body ends well.

    Raises:
        DataError: If ``folder`` exists and may not be replaced.
        ResourceError: If the disk is full.
    """
    refuse_existing(folder, overwrite=overwrite)
    work = folder.with_name(f".{folder.name}.writing")
    with full_disk_as_error(folder):
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(parents=True)
        try:
            yield work
            sync_folder(work)
            replace_folder(work, folder)
        finally:
            if work.exists():
                shutil.rmtree(work)


@dataclass(frozen=True, slots=True)
class ToWrite:
    """A tensor to be written: the type it is stored in, its shape, and what makes its numbers."""

    kind: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @classmethod
    def of(cls, kind: str, values: Array) -> ToWrite:
        """Return an array that is there already."""
        return cls(kind, values.shape, lambda: values)


def write_tensors(path: Path, tensors: Mapping[str, ToWrite]) -> None:
    """Write a safetensors file of floats; one tensor at a time is made and held."""
    rows, end = [], 0
    for name in sorted(tensors, key=lambda name: (-DTYPE_SIZES[tensors[name].kind], name)):
        each = tensors[name]
        size = math.prod(each.shape) * DTYPE_SIZES[each.kind]
        rows.append((name, each.kind, each.shape, end, end + size))
        end += size
    with atomic_write(path, "wb") as file:
        file.write(build_header(rows))
        for name, kind, *_ in rows:
            file.write(np.ascontiguousarray(narrow(tensors[name].make(), kind)).tobytes())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def open_checkpoint(reference: str, say: Callable[[str], None] | None = None) -> Checkpoint:
    """Open a checkpoint by path, or by a reference that the hub or a job resolves.

    Raises:
        CheckpointError: If it is missing or broken.
    """
    from stillroom.checkpoints import Checkpoint

    if is_address(reference):  # rows are read where they lie
        from stillroom.models import resolve_checkpoint

        return Checkpoint.open(resolve_checkpoint(reference, say=say, weights=False))
    return Checkpoint.open(resolve_path(reference, say))


def resolve_path(reference: str, say: Callable[[str], None] | None = None) -> Path:
    """Return the path that a reference names, through the hub where it is none itself."""
    path = Path(reference)
    if path.exists():
        return path
    from stillroom.models import resolve_checkpoint

    return resolve_checkpoint(reference, say=say)
