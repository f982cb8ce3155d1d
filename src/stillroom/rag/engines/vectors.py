"""Dense engine: exact top-k of dot products over several arrays of vectors.

Two passes. The first multiplies 8-bit codes, a quarter of the bytes, as integers and so without any
rounding; how far a code is from its vector is known, so every row has a lower and an upper bound.
The second scores in float64 the rows whose upper bound reaches the k-th lower bound, usually some
dozens. No row that is left out could have been found: the bound is Cauchy and Schwarz's, for
x = x' + r and q = q' + t, |x.q - x'.q'| <= |r||q| + |x'||t|, plus what float32 may round.

A score is a float64 sum rounded once to float32: it depends on the row and the query alone, not on
how rows are spread over arrays, on masks or on the first pass.

Does not know: what vectors stand for, whether they are normalized (a cosine is the dot product of
vectors that are), embedders.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.rag.engines.arrays import Arrays, map_arrays, write_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CODES", "DenseEngine", "VectorCodes", "is_narrow"]

CODES = "codes.safetensors"
_LEVELS = 127
_BLOCK_ROWS = 4096
_SLACK = 1e-6
_GATHERED_SHARE = 24
_WORTH_LOADING = 100_000


@dataclass(frozen=True, slots=True)
class VectorCodes:
    """8-bit codes of vectors: x' = scale * code, and what is needed to bound the rest.

    ``codes`` (N, D) int8; ``scales``, ``norms`` (of x') and ``errors`` (the norm of x - x'), (N,).
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    norms: NDArray[np.float32]
    errors: NDArray[np.float32]

    @classmethod
    def encode(cls, vectors: NDArray[Any]) -> Self:
        """Return the codes of vectors, (N, D) float; finite."""
        count, width = vectors.shape
        made = cls(
            np.empty((count, width), dtype=np.int8),
            *(np.empty(count, dtype=np.float32) for _ in range(3)),
        )
        for start in range(0, count, _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            made._fill(rows, np.asarray(vectors[rows], dtype=np.float32))
        return made

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the codes that ``write`` left in a folder.

        Raises:
            IntegrityError: If the file is missing, cut off or not made of the arrays it must have.
        """
        arrays = map_arrays(folder / CODES, ("codes", "scales", "norms", "errors"), _fits)
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
        """Return how many rows there are."""
        return len(self.codes)

    def bound(self, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return about what every row scores, (N,), and how far off that may be, (N,)."""
        scale, code = _encode_rows(query[None])
        rest = query - scale[0] * code[0]
        size, missing = float(np.linalg.norm(query)), float(np.linalg.norm(rest))
        about = _multiply(self.codes, code[0]).astype(np.float32)
        about *= self.scales * scale[0]
        radius = self.errors * np.float32(size * (1 + _SLACK))
        radius += self.norms * np.float32(missing * (1 + _SLACK) + size * _SLACK)
        return about, radius

    def _fill(self, rows: slice, vectors: NDArray[np.float32]) -> None:
        scales, codes = _encode_rows(vectors)
        near = scales[:, None].astype(np.float64) * codes
        self.codes[rows] = codes
        self.scales[rows] = scales
        self.norms[rows] = np.linalg.norm(near, axis=1)
        self.errors[rows] = np.linalg.norm(vectors - near, axis=1)


class DenseEngine:
    """Searches a view: arrays of vectors one after another, and which of their rows are allowed."""

    def __init__(
        self,
        parts: Sequence[NDArray[Any]],
        alive: NDArray[np.bool_] | None = None,
        *,
        codes: Sequence[VectorCodes] | None = None,
    ) -> None:
        """Make a view; cheap until it is asked.

        Args:
            parts: Finite float arrays (N, D) of one width, memory-mapped or not; the rows of the
                second follow those of the first.
            alive: Which rows may be found, (N,) bool over all parts; None for all.
            codes: Each part's codes; by default made when first needed (0.1 s for 50,000 rows of
                384) and kept, a quarter of the vectors' bytes.
        """
        self._parts = tuple(np.asarray(part) for part in parts)
        self._offsets = np.cumsum([0, *map(len, self._parts)])
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)
        self._codes = None if codes is None else tuple(codes)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many rows the view spans, those that are not allowed included."""
        return int(self._offsets[-1])

    def search(
        self,
        vector: NDArray[np.float32],
        k: int,
        *,
        mask: NDArray[np.bool_] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best ``k`` rows and their scores, best first, ties by row; exact.

        Args:
            vector: The query's, (D,); finite.
            k: How many rows; 1 or more.
            mask: Which rows may be found, (N,) bool; few of them are gathered, not scanned for.
            rows: Or these alone, different and in any order.
        """
        query = np.asarray(vector, dtype=np.float32)
        if rows is not None:
            near = np.sort(rows)
            near = near if self._alive is None else near[self._alive[near]]
            near = near if mask is None else near[mask[near]]
        else:
            near = self._near(query, k, self.allow(mask))
        scores = self.score(query, near)
        order = np.lexsort((near, -scores))[:k]
        return near[order], scores[order]

    def score(self, vector: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores of rows, given in ascending order, (N,) float32."""
        query = np.asarray(vector, dtype=np.float64)
        scores = np.empty(len(rows), dtype=np.float32)
        cuts = np.searchsorted(rows, self._offsets)
        for part, offset, start, stop in zip(
            self._parts, self._offsets, cuts, cuts[1:], strict=False
        ):
            for begin in range(int(start), int(stop), _BLOCK_ROWS):
                span = slice(begin, min(begin + _BLOCK_ROWS, int(stop)))
                block = part[rows[span] - offset].astype(np.float64)
                # A sum along each row by itself, unlike a matrix product, is the same sum whatever
                # rows stand beside it.
                scores[span] = (block * query).sum(axis=1)
        return scores

    @property
    def parts(self) -> tuple[NDArray[Any], ...]:
        """The arrays of vectors, in order."""
        return self._parts

    def allow(self, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Return which rows may be found within a mask, (N,) bool; None is all."""
        if mask is None or self._alive is None:
            return self._alive if mask is None else mask
        both: NDArray[np.bool_] = mask & self._alive
        return both

    def _near(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return ascending rows among which the best ``k`` are."""
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if is_narrow(count, len(self), k):
            return np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        # Loading torch takes a second: a lone question to a small index goes without.
        is_integer = ("torch" in sys.modules or len(self) >= _WORTH_LOADING) and _has_integers()
        bounds = [
            codes.bound(query) if is_integer else _bound_floats(part, codes, query)
            for part, codes in zip(self._parts, self._all_codes(), strict=True)
        ]
        about, radius = (np.concatenate(each) for each in zip(*bounds, strict=True))
        lowest = about - radius
        if allowed is not None:
            lowest[~allowed] = -np.inf
        limit = np.partition(lowest, len(lowest) - k)[len(lowest) - k]
        about += radius
        reach = about >= limit
        if allowed is not None:
            reach &= allowed
        return np.flatnonzero(reach)

    def _all_codes(self) -> tuple[VectorCodes, ...]:
        with self._lock:
            if self._codes is None:
                self._codes = tuple(VectorCodes.encode(part) for part in self._parts)
            return self._codes


def is_narrow(count: int, total: int, wanted: int) -> bool:
    """Return whether so few of all rows may be found that scoring each of them is least work."""
    return count <= max(wanted, total // _GATHERED_SHARE)


def _encode_rows(
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return scales (N,) and codes (N, D) of vectors (N, D); a row of zeros has codes of 0."""
    scales = np.abs(vectors).max(axis=1, initial=0) / np.float32(_LEVELS)
    scales[scales == 0] = 1
    codes = np.rint(vectors / scales[:, None])
    return scales, np.clip(codes, -_LEVELS, _LEVELS).astype(np.int8)


def _multiply(codes: NDArray[np.int8], code: NDArray[np.int8]) -> NDArray[np.int32]:
    """Return the integer products of codes (N, D) with one (D,); torch has it in vector units."""
    import torch

    found = torch._int_mm(torch.from_numpy(codes), torch.from_numpy(code)[:, None])
    return np.asarray(found.numpy()[:, 0])


@lru_cache(maxsize=1)
def _has_integers() -> bool:
    """Return whether integer products are exact here.

    Processors without VNNI make one side unsigned and add pairs of products in 16 bits, which the
    largest codes overflow.
    """
    rng = np.random.default_rng(0)
    codes = rng.choice(np.array([-_LEVELS, _LEVELS], dtype=np.int8), (64, 512))
    codes[0], codes[1] = _LEVELS, -_LEVELS
    try:
        found = [_multiply(codes, code) for code in codes[:8]]
    except (AttributeError, RuntimeError):
        return False
    return np.array_equal(np.array(found), codes[:8].astype(np.int32) @ codes.T.astype(np.int32))


def _bound_floats(
    part: NDArray[Any], codes: VectorCodes, query: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what ``VectorCodes.bound`` does, from the vectors themselves."""
    about = np.empty(len(part), dtype=np.float32)
    for start in range(0, len(part), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        about[rows] = np.asarray(part[rows], dtype=np.float32) @ query
    # Higham 2002, section 3.1: a sum of D products in any order is off by D u at most.
    share = np.float32(float(np.linalg.norm(query)) * (len(query) * 2.0**-23 + _SLACK))
    return about, (codes.norms + codes.errors) * share


def _fits(arrays: Arrays) -> bool:
    shapes = [arrays[name].shape for name in ("scales", "norms", "errors")]
    codes = arrays["codes"]
    return codes.ndim == 2 and codes.dtype == np.int8 and set(shapes) == {codes.shape[:1]}
