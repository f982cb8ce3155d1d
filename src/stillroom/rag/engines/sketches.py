"""Approximate search: one bit a dimension finds the neighbourhood, full vectors score it.

A vector is mixed by a fixed orthogonal transform, so that no dimension carries more than another,
and each coordinate's sign is kept: 48 bytes for 384 dimensions, a thirty-second of the vector. Of
all allowed rows those whose signs differ least from the query's are scored in full. A sketch
depends on its row alone; a filter narrows what is compared and not what was found, so it costs no
recall as it does in a graph.

Source: signs of random projections, Charikar 2002, doi:10.1145/509907.509965; mixing by signs, a
permutation and Hadamard blocks after Ailon and Chazelle 2006, doi:10.1145/1132516.1132597.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.rag.engines.arrays import map_arrays, write_arrays
from stillroom.rag.engines.mixing import BLOCK, mix_rows, mixed_width
from stillroom.rag.engines.vectors import DenseEngine, is_narrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DEFAULT_OVERSAMPLING",
    "OVERSAMPLINGS",
    "SKETCHES",
    "ApproximateEngine",
    "MeasuredRecall",
    "Sketches",
    "calibrate_oversampling",
]

SKETCHES = "sketches.safetensors"
DEFAULT_OVERSAMPLING = 16
_BLOCK_ROWS = 4096
OVERSAMPLINGS = (4, 6, 10, 16, 25, 40, 64, 100)
_FARTHEST = np.uint16(2**16 - 1)


@dataclass(frozen=True, slots=True)
class Sketches:
    """Sketches of vectors, laid out by words: ``bits`` (W, N) uint64, 64 coordinates a word."""

    bits: NDArray[np.uint64]

    @classmethod
    def make(cls, vectors: NDArray[Any]) -> Self:
        """Return the sketches of vectors, (N, D) float."""
        words = mixed_width(vectors.shape[1]) // BLOCK
        bits = np.empty((words, len(vectors)), dtype=np.uint64)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            bits[:, rows] = _sketch(np.asarray(vectors[rows], dtype=np.float32)).T
        return cls(bits)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the sketches that ``write`` left in a folder.

        Raises:
            IntegrityError: If the file is missing, cut off or not made of the array it must have.
        """
        path = folder / SKETCHES
        found = map_arrays(path, ("bits",), lambda arrays: arrays["bits"].ndim == 2)
        return cls(found["bits"])

    def write(self, folder: Path) -> None:
        """Write the sketches into a folder, atomically.

        Raises:
            ResourceError: If the disk is full.
        """
        write_arrays(folder / SKETCHES, {"bits": self.bits})

    def __len__(self) -> int:
        """Return how many rows there are."""
        return int(self.bits.shape[1])

    def compare(self, query: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Return in how many signs every row differs from a query, (N,)."""
        apart = np.zeros(len(self), dtype=np.uint16)
        for word, own in zip(self.bits, _sketch(query[None])[0], strict=True):
            apart += _count_bits(word ^ own)
        return apart


@dataclass(frozen=True, slots=True)
class MeasuredRecall:
    """What share of the exact best ``k`` was found, over how many queries, at which oversampling.

    ``oversampling`` is None where none that was tried reaches the recall asked for; ``recall`` is
    then that of the largest.
    """

    recall: float
    k: int
    queries: int
    oversampling: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class ApproximateEngine:
    """Searches sketches and scores what they find, or all rows exactly where that is surer.

    A filter that keeps few rows is searched exactly, and so is everything once ``calibrate`` finds
    that sketches miss too much.
    """

    def __init__(
        self,
        exact: DenseEngine,
        *,
        sketches: Sequence[Sketches | None] | None = None,
        oversampling: int | None = DEFAULT_OVERSAMPLING,
    ) -> None:
        """Stand beside an exact engine.

        Args:
            exact: What scores, and answers where sketches do not.
            sketches: One for each of the engine's parts; by default, and where one is None, made
                when first needed (half a second for 50,000 rows of 384).
            oversampling: How many rows are scored for each that is wanted; None searches exactly.
        """
        self.oversampling = oversampling
        self.measured: MeasuredRecall | None = None
        self._exact = exact
        self._sketches: list[Sketches | None] = list(sketches or [None] * len(exact.parts))
        self._lock = threading.Lock()

    def search(
        self, vector: NDArray[np.float32], k: int, *, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return about the best ``k`` rows and their exact scores, best first, ties by row.

        Args:
            vector: The query's, (D,); finite.
            k: How many rows; 1 or more.
            mask: Which rows may be found, (N,) bool.
        """
        if self.oversampling is None:
            return self._exact.search(vector, k, mask=mask)
        return self._search(vector, k, self.oversampling, mask)

    def calibrate(
        self, queries: NDArray[np.float32], *, k: int = 10, least: float = 0.97
    ) -> MeasuredRecall:
        """Measure recall against exact search, and use the smallest oversampling that reaches it.

        A row that scores as high as the last of the exact best is as good as that one.

        Args:
            queries: Vectors of questions such as will be asked, (Q, D); passages' own are easier.
            k: At which depth.
            least: The mean recall to reach, 0 to 1, a little above what other queries must have;
                where none does, all search is exact from here.
        """
        self.measured = calibrate_oversampling(
            queries,
            lambda query: self._exact.search(query, k)[1],
            lambda query, oversampling: self._search(query, k, oversampling, None),
            k=k,
            least=least,
        )
        self.oversampling = self.measured.oversampling
        return self.measured

    def _search(
        self,
        vector: NDArray[np.float32],
        k: int,
        oversampling: int,
        mask: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        query = np.asarray(vector, dtype=np.float32)
        allowed = self._exact.allow(mask)
        wanted, total = k * oversampling, len(self._exact)
        count = total if allowed is None else int(np.count_nonzero(allowed))
        if is_narrow(count, total, wanted):
            return self._exact.search(query, k, mask=mask)
        apart = np.concatenate([part.compare(query) for part in self._all_sketches()])
        if allowed is not None:
            apart[~allowed] = _FARTHEST
        limit = np.partition(apart, wanted - 1)[wanted - 1]
        near = apart <= limit
        return self._exact.search(query, k, rows=np.flatnonzero(near))

    def _all_sketches(self) -> list[Sketches]:
        with self._lock:
            found = [
                own if own is not None else Sketches.make(part)
                for own, part in zip(self._sketches, self._exact.parts, strict=True)
            ]
            self._sketches[:] = found
            return found


def calibrate_oversampling(
    queries: NDArray[np.float32],
    exact: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    near: Callable[
        [NDArray[np.float32], int], tuple[NDArray[np.int64], NDArray[np.float32]] | None
    ],
    *,
    k: int,
    least: float,
) -> MeasuredRecall:
    """Return the smallest oversampling with which a search finds enough, and its recall.

    A row that scores as high as the last of the exact best is as good as that one.

    Args:
        queries: Vectors of questions, (Q, D).
        exact: Gives the scores of the exact best ``k``.
        near: Gives rows and scores at an oversampling, or None where it is exact itself.
        k: At which depth.
        least: The mean recall to reach, 0 to 1.
    """
    best = [exact(query) for query in queries]
    recall = 1.0
    for oversampling in OVERSAMPLINGS:
        shares = []
        for query, scores in zip(queries, best, strict=True):
            if len(scores):
                found = near(query, oversampling)
                own = scores if found is None else found[1]
                shares.append(float(np.count_nonzero(own >= scores[-1])) / len(scores))
        recall = float(np.mean(shares)) if shares else 1.0
        if recall >= least:
            return MeasuredRecall(recall, k, len(queries), oversampling)
    return MeasuredRecall(recall, k, len(queries), None)


def _sketch(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the signs of mixed vectors (N, D) as words (N, W)."""
    packed = np.packbits(mix_rows(vectors) > 0, axis=1)
    return np.asarray(packed.view(np.uint64))


def _count_bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return how many bits of each word are set; NumPy counts them itself from 2.0 on."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words))
    quarters = _counts()[words.view(np.uint16)].reshape(-1, 4)
    return np.asarray(quarters.sum(axis=1, dtype=np.uint8))


@lru_cache(maxsize=1)
def _counts() -> NDArray[np.uint8]:
    numbers = np.arange(2**16, dtype=np.uint16)
    bits = np.unpackbits(numbers.view(np.uint8).reshape(-1, 2), axis=1)
    return np.asarray(bits.sum(axis=1, dtype=np.uint8))
