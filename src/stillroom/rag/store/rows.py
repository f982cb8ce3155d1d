"""Rows: the passages that somebody sees, numbered in order of path and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.rag.store.snapshots import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Rows", "Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """Documents in order of path: keys, contents, numbers of passages, first places; (N,) each."""

    keys: NDArray[np.int64]
    contents: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def without(self, keys: Sequence[int]) -> Table:
        """Return the table without the documents of some keys."""
        stays = ~np.isin(self.keys, np.array(keys, dtype=np.int64))
        columns = (self.keys, self.contents, self.counts, self.starts)
        return Table(*(column[stays] for column in columns))


class Rows:
    """The passages of a view in order: documents by path, passages by position.

    A row is a number from 0 in that order. A store counts places, as things were written there:
    ``places`` (N,) gives the place of each row, ``rows`` (P,) the reverse, -1 where the view sees
    no passage.
    """

    def __init__(self, table: Table, size: int, where: Path) -> None:
        """Order the passages of a table's documents.

        Args:
            table: The documents.
            size: How many places there are.
            where: What the table is from, for errors.

        Raises:
            IntegrityError: If a document lies beyond the places, or two in one.
        """
        self.table = table
        self.firsts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(table.counts)])
        count = int(self.firsts[-1])
        steps = np.arange(count) - np.repeat(self.firsts[:-1], table.counts)
        self.places: NDArray[np.int64] = np.repeat(table.starts, table.counts) + steps
        self.rows: NDArray[np.int64] = np.full(size, -1, dtype=np.int64)
        if count and int(self.places.max()) >= size:
            raise damaged(where, "a document lies beyond what is there")
        self.rows[self.places] = np.arange(count)
        if int((self.rows >= 0).sum()) != count:
            raise damaged(where, "two documents lie in one place")
        self._order = np.argsort(table.contents, kind="stable")

    def __len__(self) -> int:
        """Return how many passages the view sees."""
        return int(self.firsts[-1])

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which places the view sees, (P,)."""
        return self.rows >= 0

    def locate(self, row: int) -> tuple[int, int]:
        """Return the key of a row's content, and the passage's position in it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        at = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return int(self.table.contents[at]), row - int(self.firsts[at])

    def document_of(self, row: int) -> int:
        """Return the key of the document that a row is of."""
        return int(self.table.keys[int(np.searchsorted(self.firsts, row, side="right")) - 1])

    def find(self, content: int, position: int = 0) -> int | None:
        """Return the row of a content's passage, or None where the view does not see it."""
        if not len(self._order):
            return None
        at = int(np.searchsorted(self.table.contents, content, sorter=self._order))
        if at == len(self._order):
            return None
        document = int(self._order[at])
        if int(self.table.contents[document]) != content:
            return None
        return int(self.firsts[document]) + position
