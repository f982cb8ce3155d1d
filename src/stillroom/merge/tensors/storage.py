"""Reading and writing of stored tensors, and of model statistics stored as tensors.

A folder has statistics.json (model, records, number of tokens) and statistics.safetensors, with
arrays by the names of the model's tensors. Methods find a parent's statistics by its fingerprint,
independent of order and location of the models. Gathering is in ``calibration``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from stillroom.checkpoints.dtypes import BIT_TYPES, narrow, widen
from stillroom.checkpoints.safetensors_format import (
    DTYPE_SIZES,
    TensorEntry,
    build_header,
    read_header,
)
from stillroom.checkpoints.store import SafetensorsStore
from stillroom.errors import CheckpointError, RecipeError
from stillroom.jobs import atomic_write, sync_folder
from stillroom.jobs.files import draft_folder, refuse_existing
from stillroom.merge.interfaces import Array
from stillroom.objects import is_address

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint

__all__ = [
    "ModelStatistics",
    "PendingTensor",
    "StatisticsKind",
    "TensorFile",
    "TensorReader",
    "array_to_bytes",
    "atomic_folder",
    "count_block_rows",
    "find_statistics",
    "iter_row_ranges",
    "open_checkpoint",
    "read_rows",
    "read_stored_rows",
    "resolve_path",
    "write_json",
    "write_statistics",
    "write_tensors",
]

_TILE = 1 << 16
_LEAST_ROWS = 8


class TensorReader(Protocol):
    """Reads stored rows by tensor name: a checkpoint, or a single file."""

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's storage type and shape."""

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of a range of rows."""


class TensorFile:
    """A safetensors file with a validated header; tensors are read on demand."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            CheckpointError: If it is not a valid safetensors file.
        """
        self.path = path
        entries = read_header(path)
        self.entries: Mapping[str, TensorEntry] = entries
        self._store = SafetensorsStore(dict.fromkeys(entries, path), entries)

    def entry(self, name: str) -> TensorEntry:
        """Return a tensor's storage type and shape."""
        return self.entries[name]

    def read(self, name: str, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes of a range of rows."""
        return self._store.read(name, start, stop)

    def array(self, name: str, dtype: Any = np.float64) -> Array:
        """Return a whole tensor as floats."""
        return read_rows(self, name, dtype=dtype)


def read_rows(
    source: TensorReader,
    name: str,
    start: int = 0,
    stop: int | None = None,
    *,
    dtype: Any = np.float32,
) -> Array:
    """Return rows of a stored tensor as floats, (rows, ...), in new memory."""
    entry = source.entry(name)
    stop = entry.rows if stop is None else stop
    return widen(read_stored_rows(source, name, start, stop), entry.dtype, dtype)


def read_stored_rows(source: TensorReader, name: str, start: int, stop: int) -> Array:
    """Return rows of a tensor in the storage type; a scalar is one row of shape ()."""
    entry = source.entry(name)
    data: Any = source.read(name, start, stop)
    bits: Array = np.frombuffer(data, BIT_TYPES[entry.dtype])
    return bits.reshape((stop - start, *entry.shape[1:]) if entry.shape else ())


def array_to_bytes(bits: Array) -> memoryview:
    """Return an array's memory as bytes."""
    return memoryview(np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data)


def iter_row_ranges(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of row blocks that depend on the shape only."""
    rows, step = (shape[0] if shape else 1), count_block_rows(shape)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def count_block_rows(shape: Sequence[int]) -> int:
    """Return the number of rows of a block of about 65,536 elements, a power of two."""
    rows = max(_LEAST_ROWS, _TILE // max(math.prod(shape[1:]), 1))
    return int(1 << (rows.bit_length() - 1))


@contextmanager
def atomic_folder(
    folder: Path, holds: Collection[str], *, overwrite: bool = False
) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` when the body succeeds.

    ``holds`` are patterns of the names that the body writes.

    Raises:
        DataError: If ``folder`` exists and may not be replaced.
        ResourceError: If another process writes ``folder``, or the disk is full.
    """
    refuse_existing(folder, holds, overwrite=overwrite)
    with draft_folder(folder) as work:
        yield work
        sync_folder(work)


@dataclass(frozen=True, slots=True)
class PendingTensor:
    """A tensor to be written: storage type, shape, and a function that computes its values."""

    kind: str
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @classmethod
    def of(cls, kind: str, values: Array) -> PendingTensor:
        """Wrap an existing array."""
        return cls(kind, values.shape, lambda: values)


def write_tensors(path: Path, tensors: Mapping[str, PendingTensor]) -> None:
    """Write a safetensors file of floats, computing one tensor at a time."""
    rows, end = [], 0
    for name in sorted(tensors, key=lambda name: (-DTYPE_SIZES[tensors[name].kind], name)):
        tensor = tensors[name]
        size = math.prod(tensor.shape) * DTYPE_SIZES[tensor.kind]
        rows.append((name, tensor.kind, tensor.shape, end, end + size))
        end += size
    with atomic_write(path, "wb") as file:
        file.write(build_header(rows))
        for name, kind, *_ in rows:
            file.write(np.ascontiguousarray(narrow(tensors[name].make(), kind)).tobytes())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON file."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def open_checkpoint(reference: str, say: Callable[[str], None] | None = None) -> Checkpoint:
    """Open a checkpoint by path, or by a reference to the hub or a job.

    Raises:
        CheckpointError: If it is missing or broken.
    """
    from stillroom.checkpoints import Checkpoint

    if is_address(reference):  # rows are read remotely
        from stillroom.models import resolve_checkpoint

        return Checkpoint.open(resolve_checkpoint(reference, say=say, weights=False))
    return Checkpoint.open(resolve_path(reference, say))


def resolve_path(reference: str, say: Callable[[str], None] | None = None) -> Path:
    """Return the path of a reference, downloaded from the hub if it is not a path."""
    path = Path(reference)
    if path.exists():
        return path
    from stillroom.models import resolve_checkpoint

    return resolve_checkpoint(reference, say=say)


StatisticsKind = Literal["fisher", "gram"]
_ABOUT, _ARRAYS = "statistics.json", "statistics.safetensors"
_VERSION = 1


class ModelStatistics:
    """The statistics of one model. Use ``ModelStatistics.open``."""

    def __init__(self, folder: Path, metadata: Mapping[str, Any], file: TensorFile) -> None:
        """Create statistics from an opened file; use ``open``."""
        self.folder = folder
        self.about = metadata
        self.kind: str = metadata["kind"]
        self.model: str = metadata["model"]
        self.tokens: int = metadata["tokens"]
        self._same: Mapping[str, str] = metadata.get("same") or {}
        self._file = file

    @classmethod
    def open(cls, folder: Path) -> ModelStatistics:
        """Open a folder written by ``write_statistics``.

        Raises:
            CheckpointError: If it is missing or broken.
        """
        try:
            metadata = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            if metadata["version"] != _VERSION or metadata["kind"] not in ("fisher", "gram"):
                raise ValueError("unsupported version or kind")
            if not (isinstance(metadata["model"], str) and isinstance(metadata["tokens"], int)):
                raise TypeError("model or tokens has the wrong type")
            if not isinstance(metadata.get("same", {}), dict):
                raise TypeError("same is not a mapping")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{folder} cannot be read as statistics: {error!s:.120}",
                code="merge.statistics-broken",
                where=str(folder),
                expected=f"{_ABOUT} and {_ARRAYS}",
                next="gather the statistics again",
            ) from error
        path = folder / _ARRAYS
        if not path.is_file():
            raise CheckpointError(
                f"{folder} contains no {_ARRAYS}",
                code="merge.statistics-broken",
                where=str(folder),
                expected=f"{_ABOUT} and {_ARRAYS}",
                next="gather the statistics again",
            )
        return cls(folder, metadata, TensorFile(path))

    def __contains__(self, name: str) -> bool:
        """Return whether there is an array for a tensor."""
        return self._home(name) in self._file.entries

    def names(self) -> list[str]:
        """Return the sorted names of all tensors with an array."""
        return sorted({*self._file.entries, *self._same})

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor's array."""
        return self._file.entry(self._home(name)).shape

    def array(self, name: str, *, dtype: Any = np.float64) -> Array:
        """Return a tensor's whole array."""
        return self._file.array(self._home(name), dtype)

    def rows(self, name: str, start: int, stop: int, *, dtype: Any = np.float32) -> Array:
        """Return rows of a tensor's array, (rows, ...)."""
        return read_rows(self._file, self._home(name), start, stop, dtype=dtype)

    def _home(self, name: str) -> str:
        return self._same.get(name, name)


def write_statistics(
    folder: Path,
    kind: StatisticsKind,
    arrays: Mapping[str, Array],
    *,
    model: str,
    tokens: int,
    records: str = "",
    same: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> ModelStatistics:
    """Write statistics atomically, and open them.

    Args:
        folder: Output folder.
        kind: ``fisher``, squared gradients in float32, or ``gram``, products of inputs in float64.
        arrays: Arrays by tensor name.
        model: Fingerprint of the model.
        tokens: Number of tokens in the means.
        records: Digest of the records.
        same: Tensors that share another tensor's array, with its name.
        details: Additional entries of statistics.json.
        overwrite: Replace an existing ``folder``.

    Raises:
        DataError: If ``folder`` exists.
        ResourceError: If the disk is full.
    """
    squares = math.fsum(
        float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values()
    )
    metadata = {
        "version": _VERSION,
        "kind": kind,
        "model": model,
        "tokens": tokens,
        "records": records,
        "norm": math.sqrt(squares),
        "same": dict(same or {}),
        **(details or {}),
    }
    stored = "F32" if kind == "fisher" else "F64"
    with atomic_folder(folder, ("artifact.json", "statistics.*"), overwrite=overwrite) as work:
        write_tensors(
            work / _ARRAYS,
            {name: PendingTensor.of(stored, array) for name, array in arrays.items()},
        )
        write_json(work / _ABOUT, metadata)
    return ModelStatistics.open(folder)


def find_statistics(
    folders: Sequence[str], keys: Sequence[str], kind: StatisticsKind, method: str
) -> list[ModelStatistics]:
    """Return the statistics of every parent, found by its fingerprint.

    Args:
        folders: Folders of statistics.
        keys: Keys of the parents: a fingerprint, and a count after ``#``.
        kind: Required kind.
        method: Name of the method, for errors.

    Raises:
        RecipeError: If a parent has none, or they are of another kind.
        CheckpointError: If a folder is broken.
    """
    metadata_files = [Path(folder) / _ABOUT for folder in folders]
    stamps = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in metadata_files)
    return list(_find_for_parent(tuple(folders), stamps, tuple(keys), kind, method))


@lru_cache(maxsize=8)
def _find_for_parent(
    folders: tuple[str, ...],
    _: tuple[int, ...],
    keys: tuple[str, ...],
    kind: str,
    method: str,
) -> tuple[ModelStatistics, ...]:
    opened = [ModelStatistics.open(Path(folder)) for folder in folders]
    known = {statistics.model: statistics for statistics in opened if statistics.kind == kind}
    statistics_by_parent = [known.get(key.partition("#")[0]) for key in keys]
    missing = [
        key
        for key, statistics in zip(keys, statistics_by_parent, strict=True)
        if statistics is None
    ]
    if missing:
        held = ", ".join(f"{statistics.folder.name} ({statistics.kind})" for statistics in opened)
        raise RecipeError(
            f"{method} has no {kind} statistics of the model with fingerprint {missing[0]:.20}",
            code="merge.statistics",
            where="method.statistics",
            expected=f"a folder of {kind} statistics for every model; given: {held or 'none'}",
            next=f"stillroom merge calibrate MODEL --records RECORDS --for {method} --out DIR",
        )
    return tuple(statistics for statistics in statistics_by_parent if statistics is not None)
