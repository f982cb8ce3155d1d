"""Memory-mapped array files in the safetensors format, term tables, and random rotation.

Equal arrays give equal bytes. Opening reads only the header; pages are read when first accessed.

The rotation applies signs and a permutation that depend on the number of dimensions alone, then
Hadamard blocks of 64. It keeps dot products, and evens out the magnitude of coordinates, so that
codes of few bits lose little.

Source of the rotation: Ailon and Chazelle 2006, doi:10.1145/1132516.1132597.
"""

from __future__ import annotations

import hashlib
import mmap
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints.safetensors_format import build_header, read_header
from stillroom.errors import CheckpointError, IntegrityError
from stillroom.jobs import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "HADAMARD_BLOCK",
    "Arrays",
    "TermTable",
    "build_rotation",
    "compute_rotated_dimensions",
    "map_arrays",
    "rotate_rows",
    "shrink_dtype",
    "sort_terms",
    "write_arrays",
]


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
    """Write named arrays into one file, atomically.

    Raises:
        ResourceError: If the disk is full.
    """
    # Wide types first, so that every array is aligned to its item size.
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
    """Map the arrays of a file into memory; writes to them stay in memory.

    All of ``names`` are required; ``check`` returns whether the arrays are consistent.

    Raises:
        IntegrityError: If the file is missing, truncated, or its arrays are inconsistent.
    """
    try:
        entries = read_header(path)
        with path.open("rb") as file:
            # A private mapping is writable, as torch requires of shared memory.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        arrays: dict[str, NDArray[Any]] = {}
        for name in names:
            entry = entries[name]
            count = int(np.prod(entry.shape))
            flat = np.frombuffer(mapped, dtype=_TYPES[entry.dtype], count=count, offset=entry.start)
            arrays[name] = flat.reshape(entry.shape)
        if not check(arrays):
            raise ValueError("its arrays are inconsistent")
    except (CheckpointError, OSError, KeyError, ValueError, IndexError) as error:
        raise IntegrityError(
            f"{path.name} cannot be read: {error}",
            code="rag.index-damaged",
            where=str(path),
            expected=f"the {path.name} that the job wrote",
            next="build the index again with --overwrite",
        ) from error
    return arrays


def shrink_dtype(values: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return non-negative values in the smallest unsigned type that can hold them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


class TermTable:
    """Terms of a file, numbered from 0 in the order of their bytes."""

    def __init__(self, blob: NDArray[Any], starts: NDArray[Any]) -> None:
        """Wrap the bytes of all terms, (B,), and their start offsets, (T + 1,)."""
        self._blob = blob.data
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def find(self, term: str) -> int | None:
        """Return the number of a term, or None."""
        encoded = _encode_term(term)
        number = bisect_left(range(len(self)), encoded, key=self.word)
        return number if number < len(self) and self.word(number) == encoded else None

    def word(self, number: int) -> bytes:
        """Return the bytes of a term by its number."""
        return bytes(self._blob[int(self._starts[number]) : int(self._starts[number + 1])])

    def words(self) -> list[bytes]:
        """Return the bytes of all terms in order."""
        blob = bytes(self._blob)
        return [blob[start:stop] for start, stop in pairwise(self._starts.tolist())]

    @staticmethod
    def pack(words: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        """Return the arrays of sorted terms: ``terms`` and ``term_starts``."""
        return {
            "terms": np.frombuffer(b"".join(words), dtype=np.uint8),
            "term_starts": np.cumsum([0, *map(len, words)], dtype=np.int64),
        }


def _encode_term(term: str) -> bytes:
    """Return the UTF-8 bytes of a term, lone surrogates included."""
    return term.encode("utf-8", "surrogatepass")


def sort_terms(terms: Sequence[str]) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the sorted bytes of distinct terms, and each term's number in that order, (N,)."""
    words = [_encode_term(term) for term in terms]
    order = sorted(range(len(words)), key=words.__getitem__)
    ranks = np.zeros(len(words), dtype=np.int64)
    ranks[order] = np.arange(len(words))
    return [words[position] for position in order], ranks


HADAMARD_BLOCK = 64


def compute_rotated_dimensions(width: int) -> int:
    """Return the dimensions of a rotated vector: ``width`` rounded up to whole blocks."""
    return -(-width // HADAMARD_BLOCK) * HADAMARD_BLOCK


def rotate_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, D) vectors, rotated: (N, ``compute_rotated_dimensions(D)``), 8 times as long."""
    count, width = vectors.shape
    order, signs = build_rotation(width)
    padded = np.zeros((count, len(order)), dtype=np.float32)
    padded[:, :width] = vectors
    blocks = np.ascontiguousarray((padded[:, order] * signs).reshape(-1, HADAMARD_BLOCK).T)
    return np.ascontiguousarray(_hadamard(blocks).T).reshape(count, len(order))


def _hadamard(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Hadamard transform of every column of (64, N); overwrites its input.

    It uses only sums and differences: a matrix product may round a row differently depending on the
    other rows, but the code of a vector must depend only on the vector.
    """
    spare = np.empty_like(blocks)
    half = 1
    while half < HADAMARD_BLOCK:
        pairs = blocks.reshape(HADAMARD_BLOCK // half // 2, 2, half, blocks.shape[1])
        out = spare.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        blocks, spare = spare, blocks
        half *= 2
    return blocks


@lru_cache(maxsize=8)
def build_rotation(width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a permutation and signs that depend only on the number of dimensions."""
    padded = compute_rotated_dimensions(width)
    random_bytes = hashlib.shake_128(f"stillroom sketch {width}".encode()).digest(8 * padded)
    numbers = np.frombuffer(random_bytes, dtype="<u8")
    signs = np.where(numbers & 1, 1.0, -1.0).astype(np.float32)
    return np.argsort(numbers, kind="stable"), signs
