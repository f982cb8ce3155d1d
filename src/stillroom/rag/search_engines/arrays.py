"""Memory-mapped array files in the safetensors format, term tables, and random rotation.

Equal arrays give equal bytes. Opening reads the header alone; pages come from the disk when they
are first touched. Does not know what the arrays mean.

Nothing is read at opening, and of a search only what it compares with.

Signs and a permutation that follow from the width alone, then Hadamard blocks of 64: dot products
stay as they are, no number carries much more than another, and codes of few bits lose little.

Source: Ailon and Chazelle 2006, doi:10.1145/1132516.1132597.
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
    "encode_term",
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


def shrink_dtype(values: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return values, none below 0, in the smallest unsigned type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


class TermTable:
    """Terms of a file, numbered from 0 in the order of their bytes."""

    def __init__(self, blob: NDArray[Any], starts: NDArray[Any]) -> None:
        """Stand over bytes (B,) and where each term starts in them (T + 1,)."""
        self._blob = blob.data
        self._starts = starts

    def __len__(self) -> int:
        """Return how many terms there are."""
        return len(self._starts) - 1

    def find(self, term: str) -> int | None:
        """Return the number of a term, or None where it is not among them."""
        wanted = encode_term(term)
        at = bisect_left(range(len(self)), wanted, key=self.word)
        return at if at < len(self) and self.word(at) == wanted else None

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


def encode_term(term: str) -> bytes:
    """Return a term's bytes; any text has some, lone surrogates included."""
    return term.encode("utf-8", "surrogatepass")


def sort_terms(terms: Sequence[str]) -> tuple[list[bytes], NDArray[np.int64]]:
    """Return the bytes of different terms in order, and the number that each of them gets, (N,)."""
    words = [encode_term(term) for term in terms]
    order = sorted(range(len(words)), key=words.__getitem__)
    ranks = np.zeros(len(words), dtype=np.int64)
    ranks[order] = np.arange(len(words))
    return [words[at] for at in order], ranks


HADAMARD_BLOCK = 64


def compute_rotated_dimensions(width: int) -> int:
    """Return how many numbers a vector of ``width`` has once it is mixed: whole blocks."""
    return -(-width // HADAMARD_BLOCK) * HADAMARD_BLOCK


def rotate_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors (N, D) rotated, (N, ``compute_rotated_dimensions(D)``).

    With 8 times their length.
    """
    count, width = vectors.shape
    order, signs = build_rotation(width)
    padded = np.zeros((count, len(order)), dtype=np.float32)
    padded[:, :width] = vectors
    blocks = np.ascontiguousarray((padded[:, order] * signs).reshape(-1, HADAMARD_BLOCK).T)
    return np.ascontiguousarray(_hadamard(blocks).T).reshape(count, len(order))


def _hadamard(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Hadamard transform of every column of (64, N); overwrites what it is given.

    By sums and differences alone: a product of matrices rounds a row otherwise when it stands among
    others, and a vector's code must depend on nothing but the vector.
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
    """Return a permutation and signs that depend on the width alone, on any machine."""
    padded = compute_rotated_dimensions(width)
    drawn = hashlib.shake_128(f"stillroom sketch {width}".encode()).digest(8 * padded)
    numbers = np.frombuffer(drawn, dtype="<u8")
    signs = np.where(numbers & 1, 1.0, -1.0).astype(np.float32)
    return np.argsort(numbers, kind="stable"), signs
