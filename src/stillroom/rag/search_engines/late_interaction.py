"""Late interaction search: exact MaxSim top-k over quantized token vectors.

A passage's score is the sum, over the query's vectors, of the largest dot product with any of the
passage's. All passages' tokens lie in one array with where each passage begins, so that one matrix
product and one grouped maximum score a block of them. Work grows with tokens times the query's
vectors: over a large index give the rows that a cheaper search found, or a mask.

As in the dense engine a float32 pass with a bound on its rounding leaves few rows for float64, so
that what is found, and its scores, do not depend on how rows are spread over files.

Of tokens that are kept as codes the search is exact over what they read back as.

Source: ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832. Does not know: centroids (PLAID), which
a cheaper first search replaces here.

All passages' tokens lie in one array with where each passage begins. With 8 or 4 bits a token is a
scale and a code a number, after the fixed rotation that ``mixing`` does: a code depends on its own
token alone, so there is nothing to learn first and nothing to learn again when passages come and
go. Read back, the cosine of a token with what it was is 0.9999 at 8 bits and 0.993 at 4.

Source: ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832; residual codes, Santhanam et al. 2022,
arXiv:2112.01488 (ColBERTv2). Differs from the latter: a rotation in place of learned centroids.
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

__all__ = [
    "TOKENS",
    "TokenBits",
    "TokenEngine",
    "TokenVectors",
    "merge_token_vectors",
]


_BLOCK_TOKENS = 8192


class TokenEngine:
    """Searches a view: files of token vectors one after another, and which rows are allowed."""

    def __init__(
        self, parts: Sequence[TokenVectors], alive: NDArray[np.bool_] | None = None
    ) -> None:
        """Make a view; cheap until it is asked.

        Args:
            parts: Token vectors of one width and kind; the rows of the second follow those of the
                first.
            alive: Which rows may be found, (N,) bool; None for all.
        """
        self._parts = tuple(parts)
        self._offsets = np.cumsum([0, *map(len, self._parts)])
        self._alive = None if alive is None or alive.all() else np.array(alive, dtype=bool)

    def __len__(self) -> int:
        """Return how many rows the view spans, those that are not allowed included."""
        return int(self._offsets[-1])

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        mask: NDArray[np.bool_] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best ``k`` rows and their scores, best first, ties by row; exact.

        Args:
            query: The query's vectors, (Q, D); finite.
            k: How many rows; 1 or more. Passages without any token are never found.
            mask: Which rows may be found, (N,) bool.
            rows: Or these alone, different and in any order.
        """
        asked = np.asarray(query, dtype=np.float32)
        if self._parts:
            asked = self._parts[0].prepare(asked)
        near = self._nearest(asked, k, self._list_rows(mask, rows))
        scores = np.array([self._score(asked, int(row)) for row in near], dtype=np.float32)
        order = np.lexsort((near, -scores))[:k]
        return near[order], scores[order]

    def vectors_of(self, row: int) -> NDArray[np.float32]:
        """Return a row's token vectors, (T, D), as they are kept."""
        at = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return self._parts[at].of(row - int(self._offsets[at]))

    def _list_rows(
        self, mask: NDArray[np.bool_] | None, rows: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Return the rows that may be found, ascending."""
        listed = np.arange(len(self)) if rows is None else np.sort(rows)
        for flags in (mask, self._alive):
            if flags is not None:
                listed = listed[flags[listed]]
        return listed

    def _nearest(
        self, query: NDArray[np.float32], k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return ascending rows among which the best ``k`` are."""
        sizes = float(np.linalg.norm(query, axis=1).sum())
        kept, scores = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
        cuts = np.searchsorted(rows, self._offsets)
        most = 0.0
        for at, part in enumerate(self._parts):
            own = rows[cuts[at] : cuts[at + 1]] - self._offsets[at]
            own = own[part.starts[own + 1] > part.starts[own]]
            if len(own):
                most = max(most, part.largest)
                kept.append(own + self._offsets[at])
                scores.append(
                    np.concatenate(list(_iter_scores(part, own, query))).astype(np.float64)
                )
        near, about = np.concatenate(kept), np.concatenate(scores)
        if len(near) <= k:
            return near
        # Higham 2002, section 3.1: a sum of n products in any order is off by n u at most.
        radius = sizes * most * (sum(query.shape) + 8) * 2.0**-23
        limit = np.partition(about, len(about) - k)[len(about) - k]
        found: NDArray[np.int64] = near[about >= limit - 2 * radius]
        return found

    def _score(self, query: NDArray[np.float32], row: int) -> float:
        own = self.vectors_of(row).astype(np.float64)
        return float((own @ query.T.astype(np.float64)).max(axis=0).sum())


def _iter_scores(
    part: TokenVectors, rows: NDArray[np.int64], query: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Yield about what ascending rows, none empty, score: some rows at a time."""
    sizes = part.starts[rows + 1] - part.starts[rows]
    ends = np.cumsum(sizes)
    first = 0
    while first < len(rows):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_TOKENS, side="right")))
        begins = ends[first:last] - sizes[first:last] - done
        shifts = np.repeat(part.starts[rows[first:last]] - begins, sizes[first:last])
        places = shifts + np.arange(int(ends[last - 1]) - done)
        is_run = int(places[-1]) - int(places[0]) + 1 == len(places)
        chosen = slice(int(places[0]), int(places[-1]) + 1) if is_run else places
        near = part.read(chosen) @ query.T  # (tokens, Q)
        yield np.maximum.reduceat(near, begins, axis=0).sum(axis=1)
        first = last


TOKENS = "token_vectors.safetensors"


TokenBits = Literal[4, 8, 16, 32]


_ENCODED_BLOCK_TOKENS = 8192


_ROTATION_GAIN = np.float32(8.0)  # what mix_rows makes of a vector of length 1


_CODE_ZERO = 7.5


@dataclass(frozen=True)
class TokenVectors:
    """The vectors of passages' tokens: ``tokens`` (T, D), ``starts`` (N + 1,) int64.

    ``tokens`` are floats; or int8 codes, or two 4-bit codes a byte, with ``scales`` (T,).
    ``largest`` is the largest norm of any, or a little more.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    scales: NDArray[np.float32]
    largest: float

    @classmethod
    def join(cls, passages: Iterable[NDArray[Any]], width: int, *, bits: TokenBits = 32) -> Self:
        """Return the vectors of passages, (n, width) float each, one after another.

        Args:
            passages: Each one's tokens; finite.
            width: Numbers a token.
            bits: How many a number is kept in.
        """
        several = [np.asarray(one, dtype=np.float32).reshape(-1, width) for one in passages]
        starts = np.cumsum([0, *map(len, several)], dtype=np.int64)
        rows = np.concatenate([np.zeros((0, width), dtype=np.float32), *several])
        tokens, scales = _encode_tokens(rows, bits)
        made = cls(tokens, starts, scales, 0.0)
        return cls(tokens, starts, scales, _find_largest(made))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map what ``write`` left in a folder.

        Raises:
            IntegrityError: If the file is missing, cut off or not made of the arrays it must have.
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
        """Return how many passages there are."""
        return len(self.starts) - 1

    def span(self, first: int, last: int) -> TokenVectors:
        """Return the passages from ``first`` up to ``last``, sharing the arrays."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        scales = self.scales[begin:end] if len(self.scales) else self.scales
        starts = self.starts[first : last + 1] - begin
        return TokenVectors(self.tokens[begin:end], starts, scales, self.largest)

    def read(self, chosen: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return chosen tokens as they are compared, (n, D') float32; see ``prepare``."""
        tokens = self.tokens[chosen]
        if tokens.dtype == np.uint8:
            codes = np.empty((len(tokens), 2 * tokens.shape[1]), dtype=np.float32)
            codes[:, ::2], codes[:, 1::2] = tokens >> 4, tokens & 15
            codes -= np.float32(_CODE_ZERO)
            return codes * self.scales[chosen][:, None]
        if tokens.dtype == np.int8:
            return tokens.astype(np.float32) * self.scales[chosen][:, None]
        return np.asarray(tokens, dtype=np.float32)

    def of(self, row: int) -> NDArray[np.float32]:
        """Return the vectors of one passage as they are compared, (n, D')."""
        return self.read(slice(int(self.starts[row]), int(self.starts[row + 1])))

    def prepare(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a query's vectors (Q, D) as they are compared with what ``read`` returns."""
        return query if self.tokens.dtype.kind == "f" else rotate_rows(query) / _ROTATION_GAIN

    def take(self, kept: NDArray[np.bool_] | None) -> Iterable[TokenVectors]:
        """Yield the kept passages' vectors, some at a time."""
        rows = np.arange(len(self)) if kept is None else np.flatnonzero(kept)
        sizes = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(sizes)
        first = 0
        while first < len(rows):
            done = int(ends[first - 1]) if first else 0
            last = max(
                first + 1, int(np.searchsorted(ends, done + _ENCODED_BLOCK_TOKENS, side="right"))
            )
            own = np.repeat(
                self.starts[rows[first:last]] - (ends[first:last] - sizes[first:last] - done),
                sizes[first:last],
            )
            places = own + np.arange(int(ends[last - 1]) - done)
            scales = self.scales[places] if len(self.scales) else self.scales
            starts = np.concatenate([[0], ends[first:last] - done]).astype(np.int64)
            yield TokenVectors(self.tokens[places], starts, scales, self.largest)
            first = last


def merge_token_vectors(
    folder: Path, pieces: Iterable[tuple[TokenVectors, NDArray[np.bool_] | None]]
) -> int:
    """Write several files' kept passages, one after another, as one file; return how many.

    They pass through a temporary file, so that all of them never lie in memory.

    Args:
        folder: Where ``token_vectors.safetensors`` is written; none of the parts' own folders.
        pieces: Of one width and kind, at least one; and of each which passages to keep, (N,) bool,
            or None for all.

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
    return len(starts) - 1


def _map_raw(file: IO[bytes], like: NDArray[Any], count: int) -> NDArray[Any]:
    shape = (count, like.shape[1])
    if not count or not like.shape[1]:
        return np.zeros(shape, dtype=like.dtype)
    return np.memmap(file, dtype=like.dtype, mode="r", shape=shape)


def _encode_tokens(
    rows: NDArray[np.float32], bits: TokenBits
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return tokens as they are kept, and their scales, none where they are floats."""
    if bits >= 16:
        return rows.astype(np.float16 if bits == 16 else np.float32), np.zeros(0, np.float32)
    mixed = rotate_rows(rows) / _ROTATION_GAIN
    most = np.abs(mixed).max(axis=1, initial=0)
    scales = (most / (127 if bits == 8 else _CODE_ZERO)).astype(np.float32)
    scales[scales == 0] = 1
    if bits == 8:
        return np.rint(mixed / scales[:, None]).astype(np.int8), scales
    codes = np.clip(np.rint(mixed / scales[:, None] + _CODE_ZERO), 0, 15).astype(np.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales


def _find_largest(made: TokenVectors) -> float:
    most = 0.0
    for start in range(0, len(made.tokens), _ENCODED_BLOCK_TOKENS):
        block = made.read(slice(start, start + _ENCODED_BLOCK_TOKENS))
        most = max(most, float(np.linalg.norm(block, axis=1).max(initial=0)))
    return most * (1 + 2.0**-20)


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
