"""Term table: terms sorted by their UTF-8 bytes in one blob, found by binary search.

Nothing is read at opening, and of a search only what it compares with.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TermTable", "encode_term", "sort_terms"]


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
