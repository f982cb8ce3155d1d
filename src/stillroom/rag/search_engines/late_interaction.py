"""Late interaction search: exact MaxSim top-k over quantized token vectors.

A passage's score is the sum, over the query's vectors, of the largest dot product with any vector
of the passage. The tokens of all passages are stored in one array with the start of each passage,
so that one matrix product and one grouped maximum score a block of them. The cost is proportional
to tokens times query vectors: for a large index pass the rows of a cheaper search, or a mask.

As in the dense engine, a float32 pass with a bound on its rounding leaves few rows for float64, so
that results do not depend on the distribution of rows over files. The search is exact over the
decoded vectors where tokens are stored as codes. There are no centroids (PLAID): a cheaper first
search replaces them.

With 8 or 4 bits, a token is stored as a scale and one code per coordinate, after the fixed rotation
of ``rotate_rows``: a code depends only on its own token, so that nothing is trained, and nothing
retrained when passages change. The cosine of decoded and original vectors is 0.9999 at 8 bits and
0.993 at 4.

Source: ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832; residual codes, Santhanam et al. 2022,
arXiv:2112.01488 (ColBERTv2). Differs from the latter: a rotation instead of learned centroids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Literal, Self

import numpy as np

from stillroom.rag.search_engines.arrays import Arrays, map_arrays, rotate_rows, write_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOKENS", "TokenBits", "TokenEngine", "TokenVectors", "merge_token_vectors"]


_BLOCK_TOKENS = 8192


class TokenEngine:
    """MaxSim search over consecutive files of token vectors, with a mask of allowed rows."""

    def __init__(
        self, parts: Sequence[TokenVectors], alive: NDArray[np.bool_] | None = None
    ) -> None:
        """Create an engine; nothing is computed before the first search.

        Args:
            parts: Token vectors with equal dimensions and type; the rows of the second follow those
                of the first.
            alive: Mask of the allowed rows, (N,) bool; None for all.
        """
        self._parts = tuple(parts)
        self._offsets = np.cumsum([0, *map(len, self._parts)])
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)

    def __len__(self) -> int:
        """Return the number of rows, including those that are not allowed."""
        return int(self._offsets[-1])

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        mask: NDArray[np.bool_] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the exact top ``k`` rows and their scores, best first, ties by row.

        ``query`` are finite vectors, (Q, D), ``mask`` of the rows to search is (N,) bool; ``rows``
        are distinct rows to search instead. Passages without tokens are never returned.
        """
        prepared = np.asarray(query, dtype=np.float32)
        if self._parts:
            prepared = self._parts[0].prepare(prepared)
        candidates = self._nearest(prepared, k, self._list_rows(mask, rows))
        scores = np.array([self._score(prepared, int(row)) for row in candidates], dtype=np.float32)
        order = np.lexsort((candidates, -scores))[:k]
        return candidates[order], scores[order]

    def vectors_of(self, row: int) -> NDArray[np.float32]:
        """Return a row's token vectors, (T, D'), decoded."""
        number = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return self._parts[number].of(row - int(self._offsets[number]))

    def _list_rows(
        self, mask: NDArray[np.bool_] | None, rows: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Return the rows to search, ascending."""
        listed = np.arange(len(self)) if rows is None else np.sort(rows)
        for flags in (mask, self._alive):
            if flags is not None:
                listed = listed[flags[listed]]
        return listed

    def _nearest(
        self, query: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return ascending rows that contain the top ``k``."""
        sizes = float(np.linalg.norm(query, axis=1).sum())
        row_parts, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
        cuts = np.searchsorted(rows, self._offsets)
        largest = 0.0
        for number, part in enumerate(self._parts):
            part_rows = rows[cuts[number] : cuts[number + 1]] - self._offsets[number]
            part_rows = part_rows[part.starts[part_rows + 1] > part.starts[part_rows]]
            if len(part_rows):
                largest = max(largest, part.largest)
                row_parts.append(part_rows + self._offsets[number])
                scores.append(
                    np.concatenate(list(_iter_scores(part, part_rows, query))).astype(np.float64)
                )
        candidates, approximate = np.concatenate(row_parts), np.concatenate(scores)
        if len(candidates) <= k:
            return candidates
        # Higham 2002, section 3.1: the error of a sum of n products in any order is at most n u.
        radius = sizes * largest * (sum(query.shape) + 8) * 2.0**-23
        limit = np.partition(approximate, len(approximate) - k)[len(approximate) - k]
        nearest: NDArray[np.int64] = candidates[approximate >= limit - 2 * radius]
        return nearest

    def _score(self, query: NDArray[np.float32], row: int) -> float:
        vectors = self.vectors_of(row).astype(np.float64)
        return float((vectors @ query.T.astype(np.float64)).max(axis=0).sum())


def _iter_scores(
    part: TokenVectors, rows: NDArray[np.int64], query: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Yield approximate scores of ascending non-empty rows, in blocks."""
    for tokens, starts in part.blocks(rows):
        is_run = int(tokens[-1]) - int(tokens[0]) + 1 == len(tokens)
        selection = slice(int(tokens[0]), int(tokens[-1]) + 1) if is_run else tokens
        products = part.read(selection) @ query.T  # (tokens, Q)
        yield np.maximum.reduceat(products, starts[:-1], axis=0).sum(axis=1)


TOKENS = "token_vectors.safetensors"
TokenBits = Literal[4, 8, 16, 32]
_ROTATION_GAIN = np.float32(8.0)  # norm that rotate_rows gives a vector of norm 1
_CODE_ZERO = 7.5


@dataclass(frozen=True)
class TokenVectors:
    """Token vectors of passages: ``tokens`` (T, D), ``starts`` (N + 1,) int64.

    ``tokens`` are floats; or int8 codes, or two 4-bit codes per byte, with ``scales`` (T,).
    ``largest`` is an upper bound of the norms.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    scales: NDArray[np.float32]
    largest: float

    @classmethod
    def join(cls, passages: Iterable[NDArray[Any]], width: int, *, bits: TokenBits = 32) -> Self:
        """Return the token vectors of consecutive passages, (n, width) float each.

        Each passage has finite token vectors of ``width`` dimensions; ``bits`` are those of a
        number.
        """
        matrices = [
            np.asarray(vectors_of_passage, dtype=np.float32).reshape(-1, width)
            for vectors_of_passage in passages
        ]
        starts = np.cumsum([0, *map(len, matrices)], dtype=np.int64)
        rows = np.concatenate([np.zeros((0, width), dtype=np.float32), *matrices])
        tokens, scales = _encode_tokens(rows, bits)
        vectors = cls(tokens, starts, scales, 0.0)
        return cls(tokens, starts, scales, _find_largest(vectors))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the token vectors in a folder into memory.

        Raises:
            IntegrityError: If the file is missing, truncated, or its arrays are inconsistent.
        """
        arrays = map_arrays(
            folder / TOKENS, ("tokens", "starts", "scales", "largest"), _is_consistent
        )
        largest = float(arrays["largest"][0])
        return cls(arrays["tokens"], arrays["starts"], arrays["scales"], largest)

    def write(self, folder: Path) -> None:
        """Write the vectors into a folder, atomically; equal vectors give equal bytes.

        Raises:
            ResourceError: If the disk is full.
        """
        arrays = {
            "tokens": self.tokens,
            "starts": self.starts,
            "scales": self.scales,
            "largest": np.array([self.largest], dtype=np.float32),
        }
        write_arrays(folder / TOKENS, arrays)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def span(self, first: int, last: int) -> TokenVectors:
        """Return the passages from ``first`` up to ``last``, sharing the arrays."""
        start, end = int(self.starts[first]), int(self.starts[last])
        scales = self.scales[start:end] if len(self.scales) else self.scales
        starts = self.starts[first : last + 1] - start
        return TokenVectors(self.tokens[start:end], starts, scales, self.largest)

    def read(self, selection: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the selected tokens decoded, (n, D') float32; see ``prepare``."""
        tokens = self.tokens[selection]
        if tokens.dtype == np.uint8:
            codes = np.empty((len(tokens), 2 * tokens.shape[1]), dtype=np.float32)
            codes[:, ::2], codes[:, 1::2] = tokens >> 4, tokens & 15
            codes -= np.float32(_CODE_ZERO)
            return codes * self.scales[selection][:, None]
        if tokens.dtype == np.int8:
            return tokens.astype(np.float32) * self.scales[selection][:, None]
        return np.asarray(tokens, dtype=np.float32)

    def of(self, row: int) -> NDArray[np.float32]:
        """Return the token vectors of one passage decoded, (n, D')."""
        return self.read(slice(int(self.starts[row]), int(self.starts[row + 1])))

    def prepare(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a query's vectors (Q, D) rotated as the vectors that ``read`` returns."""
        return query if self.tokens.dtype.kind == "f" else rotate_rows(query) / _ROTATION_GAIN

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield blocks of passages: positions of their tokens, and the n + 1 starts among these."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(sizes)
        first = 0
        while first < len(rows):
            done = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_TOKENS, side="right")))
            starts = np.concatenate([[0], ends[first:last] - done]).astype(np.int64)
            shifts = np.repeat(self.starts[rows[first:last]] - starts[:-1], sizes[first:last])
            yield shifts + np.arange(int(starts[-1])), starts
            first = last

    def take(self, mask: NDArray[np.bool_] | None) -> Iterable[TokenVectors]:
        """Yield the vectors of the selected passages, in blocks."""
        rows = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        for positions, starts in self.blocks(rows):
            scales = self.scales[positions] if len(self.scales) else self.scales
            yield TokenVectors(self.tokens[positions], starts, scales, self.largest)


def merge_token_vectors(
    folder: Path, pieces: Iterable[tuple[TokenVectors, NDArray[np.bool_] | None]]
) -> None:
    """Write the selected passages of several files, in order, as one file.

    They pass through a temporary file, so that they are never all in memory.

    Args:
        folder: Folder where ``token_vectors.safetensors`` is written; none of the parts' folders.
        pieces: Token vectors of equal dimensions and type, at least one, each with a mask of the
            passages to keep, (N,) bool, or None for all.

    Raises:
        ResourceError: If the disk is full.
    """
    sizes: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    scales: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)]
    largest, count = 0.0, 0
    kind = np.zeros((0, 0), dtype=np.float32)
    with TemporaryFile(dir=folder) as file:
        for part, mask in pieces:
            kind = part.tokens[:0]
            for block in part.take(mask):
                file.write(np.ascontiguousarray(block.tokens).data)
                sizes.append(np.diff(block.starts))
                scales.append(block.scales)
                count += len(block.tokens)
                largest = max(largest, block.largest)
        file.flush()
        tokens = _map_raw(file, kind, count)
        starts = np.cumsum(np.concatenate(sizes), dtype=np.int64)
        TokenVectors(tokens, starts, np.concatenate(scales), largest).write(folder)


def _map_raw(file: IO[bytes], like: NDArray[Any], count: int) -> NDArray[Any]:
    shape = (count, like.shape[1])
    if not count or not like.shape[1]:
        return np.zeros(shape, dtype=like.dtype)
    return np.memmap(file, dtype=like.dtype, mode="r", shape=shape)


def _encode_tokens(
    rows: NDArray[np.float32], bits: TokenBits
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the stored tokens, and their scales, empty for floats."""
    if bits >= 16:
        return rows.astype(np.float16 if bits == 16 else np.float32), np.zeros(0, np.float32)
    rotated = rotate_rows(rows) / _ROTATION_GAIN
    largest = np.abs(rotated).max(axis=1, initial=0)
    scales = (largest / (127 if bits == 8 else _CODE_ZERO)).astype(np.float32)
    scales[scales == 0] = 1
    if bits == 8:
        return np.rint(rotated / scales[:, None]).astype(np.int8), scales
    codes = np.clip(np.rint(rotated / scales[:, None] + _CODE_ZERO), 0, 15).astype(np.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales


def _find_largest(vectors: TokenVectors) -> float:
    largest = 0.0
    for start in range(0, len(vectors.tokens), _BLOCK_TOKENS):
        block = vectors.read(slice(start, start + _BLOCK_TOKENS))
        largest = max(largest, float(np.linalg.norm(block, axis=1).max(initial=0)))
    return largest * (1 + 2.0**-20)


def _is_consistent(arrays: Arrays) -> bool:
    tokens, starts, scales = arrays["tokens"], arrays["starts"], arrays["scales"]
    return (
        tokens.ndim == 2
        and starts.ndim == 1
        and len(starts) > 0
        and starts[-1] == len(tokens)
        and len(scales) == (0 if tokens.dtype.kind == "f" else len(tokens))
        and len(arrays["largest"]) == 1
    )
