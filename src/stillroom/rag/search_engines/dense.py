"""Dense vector search: exact top-k of dot products (kNN), or binary quantization (ANN).

Exact search has two passes. The first multiplies 8-bit codes, a quarter of the bytes, as integers
without rounding; the distance of a code to its vector is known, so that every row has a lower and
an upper bound. The second scores in float64 the rows whose upper bound reaches the k-th lower
bound, usually some dozens. No row of the top k is missed: the bound is Cauchy-Schwarz, for x = x' +
r and q = q' + t, |x.q - x'.q'| <= |r||q| + |x'||t|, plus the rounding error of float32.

A score is a float64 sum rounded once to float32: it depends only on the row and the query, not on
the distribution of rows over arrays, on masks or on the first pass. Vectors need not be normalized
(a cosine is the dot product of normalized ones).

Approximate search rotates a vector by a fixed orthogonal transform, which evens out its
coordinates, and stores the sign of each: 48 bytes for 384 dimensions, 1/32 of the vector. The
allowed rows with the fewest sign differences to the query are scored in full. A binary code
depends only on its row; filters are applied before the comparison, so they cost no recall as they
do in a graph.

Source: signs of random projections, Charikar 2002, doi:10.1145/509907.509965; rotation by signs, a
permutation and Hadamard blocks after Ailon and Chazelle 2006, doi:10.1145/1132516.1132597.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.rag.search_engines.arrays import (
    HADAMARD_BLOCK,
    Arrays,
    compute_rotated_dimensions,
    map_arrays,
    rotate_rows,
    write_arrays,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BINARY_CODES",
    "CODES",
    "DEFAULT_OVERSAMPLING",
    "ApproximateEngine",
    "BinaryCodes",
    "DenseEngine",
    "MeasuredRecall",
    "VectorCodes",
    "calibrate_oversampling",
    "is_selective",
]


CODES = "codes.safetensors"
_LEVELS = 127
_BLOCK_ROWS = 4096
_SLACK = 1e-6
_GATHERED_SHARE = 24
_MIN_ROWS_FOR_TORCH = 100_000


@dataclass(frozen=True, slots=True)
class VectorCodes:
    """8-bit codes of vectors: x' = scale * code, with the norms that bound their error.

    ``codes`` (N, D) int8; ``scales``, ``norms`` (of x') and ``errors`` (the norm of x - x'), (N,).
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    norms: NDArray[np.float32]
    errors: NDArray[np.float32]

    @classmethod
    def encode(cls, vectors: NDArray[Any]) -> Self:
        """Return the codes of finite float vectors, (N, D)."""
        count, width = vectors.shape
        encoded = cls(
            np.empty((count, width), dtype=np.int8),
            *(np.empty(count, dtype=np.float32) for _ in range(3)),
        )
        for start in range(0, count, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            encoded._fill(rows, np.asarray(vectors[rows], dtype=np.float32))
        return encoded

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the codes in a folder into memory.

        Raises:
            IntegrityError: If the file is missing, truncated, or its arrays are inconsistent.
        """
        arrays = map_arrays(folder / CODES, ("codes", "scales", "norms", "errors"), _is_consistent)
        return cls(**arrays)

    def write(self, folder: Path) -> None:
        """Write the codes into a folder, atomically; equal codes give equal bytes.

        Raises:
            ResourceError: If the disk is full.
        """
        write_arrays(
            folder / CODES,
            {
                "codes": self.codes,
                "scales": self.scales,
                "norms": self.norms,
                "errors": self.errors,
            },
        )

    def __len__(self) -> int:
        return len(self.codes)

    def bound(self, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the approximate score of every row, (N,), and its maximum error, (N,)."""
        scale, code = _encode_rows(query[None])
        residual = query - scale[0] * code[0]
        size, missing = float(np.linalg.norm(query)), float(np.linalg.norm(residual))
        scores = _multiply_codes(self.codes, code[0]).astype(np.float32)
        scores *= self.scales * scale[0]
        radius = self.errors * np.float32(size * (1 + _SLACK))
        radius += self.norms * np.float32(missing * (1 + _SLACK) + size * _SLACK)
        return scores, radius

    def _fill(self, rows: slice, vectors: NDArray[np.float32]) -> None:
        scales, codes = _encode_rows(vectors)
        decoded = scales[:, None].astype(np.float64) * codes
        self.codes[rows] = codes
        self.scales[rows] = scales
        self.norms[rows] = np.linalg.norm(decoded, axis=1)
        self.errors[rows] = np.linalg.norm(vectors - decoded, axis=1)


class DenseEngine:
    """Exact search over consecutive arrays of vectors, with a mask of allowed rows."""

    def __init__(
        self,
        parts: Sequence[NDArray[Any]],
        alive: NDArray[np.bool_] | None = None,
        *,
        codes: Sequence[VectorCodes] | None = None,
    ) -> None:
        """Create an engine; nothing is computed before the first search.

        Args:
            parts: Finite float arrays (N, D) of one width, memory-mapped or not; the rows of the
                second follow those of the first.
            alive: Mask of the allowed rows, (N,) bool over all parts; None for all.
            codes: Codes of each part; by default computed when first needed (0.1 s for 50,000 rows
                of 384) and cached, a quarter of the vectors' bytes.
        """
        self._parts = tuple(np.asarray(part) for part in parts)
        self._offsets = np.cumsum([0, *map(len, self._parts)])
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)
        self._codes = None if codes is None else tuple(codes)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of rows, including those that are not allowed."""
        return int(self._offsets[-1])

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        *,
        mask: NDArray[np.bool_] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the exact top ``k`` rows and their scores, best first, ties by row.

        ``vector`` is finite, (D,); ``mask`` is (N,) bool, and few rows of it are gathered instead
        of scanned; ``rows`` are distinct rows to search instead, in any order.
        """
        query = np.asarray(vector, dtype=np.float32)
        if rows is not None:
            candidates = np.sort(rows)
            candidates = candidates if self._alive is None else candidates[self._alive[candidates]]
            candidates = candidates if mask is None else candidates[mask[candidates]]
        else:
            candidates = self._near(query, k, self.allow(mask))
        scores = self.score(query, candidates)
        order = np.lexsort((candidates, -scores))[:k]
        return candidates[order], scores[order]

    def score(self, vector: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores of rows given in ascending order, (N,) float32."""
        query = np.asarray(vector, dtype=np.float64)
        scores = np.empty(len(rows), dtype=np.float32)
        cuts = np.searchsorted(rows, self._offsets)
        for part, offset, start, stop in zip(
            self._parts, self._offsets, cuts, cuts[1:], strict=False
        ):
            for first in range(int(start), int(stop), _BLOCK_ROWS):
                span = slice(first, min(first + _BLOCK_ROWS, int(stop)))
                block = part[rows[span] - offset].astype(np.float64)
                # Unlike a matrix product, a separate sum along each row does not depend on the
                # other rows.
                scores[span] = (block * query).sum(axis=1)
        return scores

    @property
    def parts(self) -> tuple[NDArray[Any], ...]:
        """The arrays of vectors, in order."""
        return self._parts

    def allow(self, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Return the mask of allowed rows within another mask, (N,) bool; None is all."""
        if mask is None or self._alive is None:
            return self._alive if mask is None else mask
        combined: NDArray[np.bool_] = mask & self._alive
        return combined

    def _near(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return ascending rows that contain the top ``k``."""
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if is_selective(count, len(self), k):
            return np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        # Loading torch takes a second: a single query of a small index does without.
        is_integer = (
            "torch" in sys.modules or len(self) >= _MIN_ROWS_FOR_TORCH
        ) and _has_exact_integers()
        bounds = [
            codes.bound(query) if is_integer else _bound_floats(part, codes, query)
            for part, codes in zip(self._parts, self._all_codes(), strict=True)
        ]
        upper, radius = (np.concatenate(arrays) for arrays in zip(*bounds, strict=True))
        lowest = upper - radius
        if allowed is not None:
            lowest[~allowed] = -np.inf
        limit = np.partition(lowest, len(lowest) - k)[len(lowest) - k]
        upper += radius
        reach = upper >= limit
        if allowed is not None:
            reach &= allowed
        return np.flatnonzero(reach)

    def _all_codes(self) -> tuple[VectorCodes, ...]:
        with self._lock:
            if self._codes is None:
                self._codes = tuple(VectorCodes.encode(part) for part in self._parts)
            return self._codes


def is_selective(count: int, total: int, k: int) -> bool:
    """Return whether so few rows are allowed that scoring each of them is cheapest."""
    return count <= max(k, total // _GATHERED_SHARE)


def _encode_rows(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return scales (N,) and codes (N, D) of vectors (N, D); a zero vector has codes of 0."""
    scales = np.abs(vectors).max(axis=1, initial=0) / np.float32(_LEVELS)
    scales[scales == 0] = 1
    codes = np.rint(vectors / scales[:, None])
    return scales, np.clip(codes, -_LEVELS, _LEVELS).astype(np.int8)


def _multiply_codes(codes: NDArray[np.int8], code: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return the integer products of codes (N, D) with one code (D,), vectorized by torch."""
    import torch

    products = torch._int_mm(torch.from_numpy(codes), torch.from_numpy(code)[:, None])
    return np.asarray(products.numpy()[:, 0])


@lru_cache(maxsize=1)
def _has_exact_integers() -> bool:
    """Return whether integer products are exact on this processor.

    Processors without VNNI use unsigned bytes on one side and add pairs of products in 16 bits,
    which overflows for the largest codes.
    """
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([-_LEVELS, _LEVELS], dtype=np.int8), (64, 512))
    codes[0], codes[1] = _LEVELS, -_LEVELS
    try:
        products = [_multiply_codes(codes, code) for code in codes[:8]]
    except (ImportError, AttributeError, RuntimeError):
        return False
    return np.array_equal(np.array(products), codes[:8].astype(np.int32) @ codes.T.astype(np.int32))


def _bound_floats(
    part: NDArray[Any], codes: VectorCodes, query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the bounds of ``VectorCodes.bound``, computed from the vectors."""
    scores = np.empty(len(part), dtype=np.float32)
    for start in range(0, len(part), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        scores[rows] = np.asarray(part[rows], dtype=np.float32) @ query
    # Higham 2002, section 3.1: the error of a sum of D products in any order is at most D u.
    share = np.float32(float(np.linalg.norm(query)) * (len(query) * 2.0**-23 + _SLACK))
    return scores, (codes.norms + codes.errors) * share


def _is_consistent(arrays: Arrays) -> bool:
    shapes = [arrays[name].shape for name in ("scales", "norms", "errors")]
    codes = arrays["codes"]
    return codes.ndim == 2 and codes.dtype == np.int8 and set(shapes) == {codes.shape[:1]}


BINARY_CODES = "sketches.safetensors"
DEFAULT_OVERSAMPLING = 16
_OVERSAMPLINGS = (4, 6, 10, 16, 25, 40, 64, 100)
_FARTHEST = np.uint16(2**16 - 1)


@dataclass(frozen=True, slots=True)
class BinaryCodes:
    """Binary codes of vectors, by words: ``bits`` (W, N) uint64, 64 coordinates per word."""

    bits: NDArray[np.uint64]

    @classmethod
    def make(cls, vectors: NDArray[Any]) -> Self:
        """Return the binary codes of float vectors, (N, D)."""
        words = compute_rotated_dimensions(vectors.shape[1]) // HADAMARD_BLOCK
        bits = np.empty((words, len(vectors)), dtype=np.uint64)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            bits[:, rows] = _binarize(np.asarray(vectors[rows], dtype=np.float32)).T
        return cls(bits)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the binary codes in a folder into memory.

        Raises:
            IntegrityError: If the file is missing, truncated, or its array is inconsistent.
        """
        path = folder / BINARY_CODES
        mapped = map_arrays(path, ("bits",), lambda arrays: arrays["bits"].ndim == 2)
        return cls(mapped["bits"])

    def write(self, folder: Path) -> None:
        """Write the binary codes into a folder, atomically.

        Raises:
            ResourceError: If the disk is full.
        """
        write_arrays(folder / BINARY_CODES, {"bits": self.bits})

    def __len__(self) -> int:
        return int(self.bits.shape[1])

    def compare(self, query: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Return the Hamming distance of every row to a query, (N,)."""
        distances = np.zeros(len(self), dtype=np.uint16)
        for words, query_word in zip(self.bits, _binarize(query[None])[0], strict=True):
            distances += np.bitwise_count(words ^ query_word)
        return distances


@dataclass(frozen=True, slots=True)
class MeasuredRecall:
    """Recall@k of approximate search against exact search, and the oversampling that was used.

    ``oversampling`` is None where none reaches the required recall; ``recall`` is then that of the
    largest.
    """

    recall: float
    k: int
    queries: int
    oversampling: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


class ApproximateEngine:
    """Approximate search by binary codes, with exact scores; exact where that is cheaper.

    Few allowed rows are searched exactly, and so is everything if ``calibrate`` finds that no
    oversampling reaches the required recall.
    """

    def __init__(
        self,
        exact: DenseEngine,
        *,
        sketches: Sequence[BinaryCodes | None] | None = None,
        oversampling: int | None = DEFAULT_OVERSAMPLING,
    ) -> None:
        """Create an engine over an exact one.

        Args:
            exact: Exact engine, which computes the scores.
            sketches: Binary codes of each of the engine's parts; by default, and where one is None,
                computed when first needed (half a second for 50,000 rows of 384).
            oversampling: Number of rows that are scored per requested row; None searches exactly.
        """
        self.oversampling = oversampling
        self._exact = exact
        self._sketches: list[BinaryCodes | None] = list(sketches or [None] * len(exact.parts))
        self._lock = threading.Lock()

    def search(
        self, vector: NDArray[np.float32], k: int, *, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the approximate top ``k`` rows and their exact scores, best first, ties by row.

        ``vector`` is finite, (D,); ``mask`` of the rows to search is (N,) bool.
        """
        if self.oversampling is None:
            return self._exact.search(vector, k, mask=mask)
        return self._search(vector, k, self.oversampling, mask)

    def calibrate(
        self, queries: NDArray[np.float32], *, k: int = 10, least: float = 0.97
    ) -> MeasuredRecall:
        """Measure recall against exact search, and use the smallest sufficient oversampling.

        A row counts as found if its score is at least the lowest of the exact top ``k``.

        ``queries`` are realistic ones, (Q, D): passage vectors are easier. ``least`` is the
        required mean recall at depth ``k``, slightly above that which other queries must have; if
        no oversampling reaches it, all further searches are exact.
        """
        measured = calibrate_oversampling(
            queries,
            lambda query: self._exact.search(query, k)[1],
            lambda query, oversampling: self._search(query, k, oversampling, None),
            k=k,
            least=least,
        )
        self.oversampling = measured.oversampling
        return measured

    def _search(
        self,
        vector: NDArray[np.float32],
        k: int,
        oversampling: int,
        mask: NDArray[np.bool_] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        query = np.asarray(vector, dtype=np.float32)
        allowed = self._exact.allow(mask)
        depth, total = k * oversampling, len(self._exact)
        count = total if allowed is None else int(np.count_nonzero(allowed))
        if is_selective(count, total, depth):
            return self._exact.search(query, k, mask=mask)
        distances = np.concatenate([part.compare(query) for part in self._all_sketches()])
        if allowed is not None:
            distances[~allowed] = _FARTHEST
        limit = np.partition(distances, depth - 1)[depth - 1]
        is_candidate = distances <= limit
        return self._exact.search(query, k, rows=np.flatnonzero(is_candidate))

    def _all_sketches(self) -> list[BinaryCodes]:
        with self._lock:
            codes = [
                binary if binary is not None else BinaryCodes.make(part)
                for binary, part in zip(self._sketches, self._exact.parts, strict=True)
            ]
            self._sketches[:] = codes
            return codes


def calibrate_oversampling(
    queries: NDArray[np.float32],
    exact: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    approximate: Callable[
        [NDArray[np.float32], int], tuple[NDArray[np.int64], NDArray[np.float32]] | None
    ],
    *,
    k: int,
    least: float,
) -> MeasuredRecall:
    """Return the smallest oversampling with sufficient recall, and its recall.

    A row counts as found if its score is at least the lowest of the exact top ``k``.

    ``queries`` are (Q, D). ``exact`` returns the scores of the exact top ``k``; ``approximate``
    returns rows and scores at an oversampling, or None if its search is exact. ``least`` is the
    required mean recall, 0 to 1.
    """
    best = [exact(query) for query in queries]
    recall = 1.0
    for oversampling in _OVERSAMPLINGS:
        shares = []
        for query, scores in zip(queries, best, strict=True):
            if len(scores):
                result = approximate(query, oversampling)
                approximate_scores = scores if result is None else result[1]
                shares.append(
                    float(np.count_nonzero(approximate_scores >= scores[-1])) / len(scores)
                )
        recall = float(np.mean(shares)) if shares else 1.0
        if recall >= least:
            return MeasuredRecall(recall, k, len(queries), oversampling)
    return MeasuredRecall(recall, k, len(queries), None)


def _binarize(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the signs of rotated vectors (N, D) as words (N, W)."""
    packed = np.packbits(rotate_rows(vectors) > 0, axis=1)
    return np.asarray(packed.view(np.uint64))
