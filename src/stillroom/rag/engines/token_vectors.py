"""Token vectors of passages, whole or as codes of few bits, in one immutable file.

All passages' tokens lie in one array with where each passage begins. With 8 or 4 bits a token is a
scale and a code a number, after the fixed rotation that ``mixing`` does: a code depends on its own
token alone, so there is nothing to learn first and nothing to learn again when passages come and
go. Read back, the cosine of a token with what it was is 0.9999 at 8 bits and 0.993 at 4.

Source: ColBERT, Khattab and Zaharia 2020, arXiv:2004.12832; residual codes, Santhanam et al. 2022,
arXiv:2112.01488 (ColBERTv2). Differs from the latter: a rotation in place of learned centroids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Literal, Self

import numpy as np

from stillroom.rag.engines.arrays import Arrays, map_arrays, write_arrays
from stillroom.rag.engines.mixing import mix_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TOKENS", "TokenBits", "TokenVectors", "merge_token_vectors"]

TOKENS = "token_vectors.safetensors"
TokenBits = Literal[4, 8, 16, 32]
_BLOCK_TOKENS = 8192
_LONGER = np.float32(8.0)  # what mix_rows makes of a vector of length 1
_MIDDLE = 7.5


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
        tokens, scales = _encode(rows, bits)
        made = cls(tokens, starts, scales, 0.0)
        return cls(tokens, starts, scales, _largest(made))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map what ``write`` left in a folder.

        Raises:
            IntegrityError: If the file is missing, cut off or not made of the arrays it must have.
        """
        arrays = map_arrays(folder / TOKENS, ("tokens", "starts", "scales", "largest"), _fits)
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
            codes -= np.float32(_MIDDLE)
            return codes * self.scales[chosen][:, None]
        if tokens.dtype == np.int8:
            return tokens.astype(np.float32) * self.scales[chosen][:, None]
        return np.asarray(tokens, dtype=np.float32)

    def of(self, row: int) -> NDArray[np.float32]:
        """Return the vectors of one passage as they are compared, (n, D')."""
        return self.read(slice(int(self.starts[row]), int(self.starts[row + 1])))

    def prepare(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a query's vectors (Q, D) as they are compared with what ``read`` returns."""
        return query if self.tokens.dtype.kind == "f" else mix_rows(query) / _LONGER

    def take(self, kept: NDArray[np.bool_] | None) -> Iterable[TokenVectors]:
        """Yield the kept passages' vectors, some at a time."""
        rows = np.arange(len(self)) if kept is None else np.flatnonzero(kept)
        sizes = self.starts[rows + 1] - self.starts[rows]
        ends = np.cumsum(sizes)
        first = 0
        while first < len(rows):
            done = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_TOKENS, side="right")))
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


def _encode(rows: NDArray[np.float32], bits: TokenBits) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return tokens as they are kept, and their scales, none where they are floats."""
    if bits >= 16:
        return rows.astype(np.float16 if bits == 16 else np.float32), np.zeros(0, np.float32)
    mixed = mix_rows(rows) / _LONGER
    most = np.abs(mixed).max(axis=1, initial=0)
    scales = (most / (127 if bits == 8 else _MIDDLE)).astype(np.float32)
    scales[scales == 0] = 1
    if bits == 8:
        return np.rint(mixed / scales[:, None]).astype(np.int8), scales
    codes = np.clip(np.rint(mixed / scales[:, None] + _MIDDLE), 0, 15).astype(np.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2], scales


def _largest(made: TokenVectors) -> float:
    most = 0.0
    for start in range(0, len(made.tokens), _BLOCK_TOKENS):
        block = made.read(slice(start, start + _BLOCK_TOKENS))
        most = max(most, float(np.linalg.norm(block, axis=1).max(initial=0)))
    return most * (1 + 2.0**-20)


def _fits(arrays: Arrays) -> bool:
    tokens, starts, scales = arrays["tokens"], arrays["starts"], arrays["scales"]
    return (
        tokens.ndim == 2
        and starts.ndim == 1
        and len(starts) > 0
        and starts[-1] == len(tokens)
        and len(scales) == (0 if tokens.dtype.kind == "f" else len(tokens))
        and len(arrays["largest"]) == 1
    )
