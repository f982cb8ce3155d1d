"""View: the passages of a snapshot that somebody may see, and what searches them.

Two sets of documents: the *population*, which whoever asks may know of, and of these the ones that
a filter leaves. Both searches look at the filter's rows alone, at any selectivity; statistics of
words are counted over the population, so that a filter changes no score, and nothing that may not
be seen shows in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stillroom.rag.engines.keyword_engine import KeywordEngine
from stillroom.rag.engines.sparse_engine import SparseEngine
from stillroom.rag.engines.token_engine import TokenEngine
from stillroom.rag.filters import Condition, Filter, compile_filter, parse_filter
from stillroom.rag.store.extras import ExtraReading
from stillroom.rag.store.protocol import DenseSearch, Reading
from stillroom.rag.store.rows import Rows, Table
from stillroom.rag.store.structures import is_approximate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.store.fields import Kind

__all__ = ["Ranking", "View", "best_positions"]

Ranking = list[tuple[int, float]]
_SLACK = 16


class View:
    """Rows of an open snapshot, in order of path and position, and what searches them."""

    everyone: Rows
    keywords: KeywordEngine
    dense: DenseSearch
    sparse: SparseEngine | None
    tokens: TokenEngine | None
    _fields: Mapping[str, frozenset[Kind]] | None

    def __init__(
        self,
        opened: Reading,
        population: Condition,
        filters: tuple[Filter, ...] = (),
        *,
        wider: View | None = None,
        older: View | None = None,
    ) -> None:
        """Load what a condition and filters leave of a snapshot.

        Args:
            opened: The snapshot.
            population: What a document must meet to be known of.
            filters: What it must meet to be found.
            wider: A view of the same snapshot and population, whose engines are shared.
            older: A view of the same population and filters: where since then documents have gone
                and nothing else has happened, its tables are taken over without them.

        Raises:
            DataError: If a filter names an unknown field, or another kind of value.
        """
        self.opened, self.population, self.filters = opened, population, filters
        gone = older.opened.list_deleted(opened) if older is not None else None
        if wider is None:
            self._share(older.everyone.table.without(gone) if older and gone is not None else None)
        else:
            self.everyone, self._fields = wider.everyone, wider._fields
            self.keywords, self.dense = wider.keywords, wider.dense
            self.sparse, self.tokens = wider.sparse, wider.tokens
        if not filters:
            self.rows = self.everyone
        elif older is not None and gone is not None:
            self.rows = self._number(older.rows.table.without(gone))
        else:
            self.rows = self._number(opened.load(self.condition, self.everyone.table))
        self.mask = self.rows.mask if filters else None
        self.standing: NDArray[np.bool_] | None = None

    def _share(self, table: Table | None) -> None:
        """Make what views of this population have in common."""
        self.everyone = self._number(table or self.opened.load(self.population))
        self.keywords = self.opened.open_keywords(self.everyone, self.population)
        self.dense = self.opened.open_dense(self.everyone, self.population)
        opened, self.sparse, self.tokens = self.opened, None, None
        if isinstance(opened, ExtraReading):
            self.sparse = opened.open_sparse(self.everyone)
            self.tokens = opened.open_tokens(self.everyone)
        self._fields = None

    @cached_property
    def condition(self) -> Condition:
        """What a document must meet to be found: population and filters."""
        condition = self.population
        for number, one in enumerate(self.filters):
            own = compile_filter(one, self.fields, f"f{number}_", self.opened.dialect)
            condition = condition.join(own)
        return condition

    @property
    def fields(self) -> Mapping[str, frozenset[Kind]]:
        """The fields that documents of the population have, with the kinds of their values."""
        if self._fields is None:
            found: dict[str, set[Kind]] = {}
            for name, kind in self.opened.list_fields(self.population):
                found.setdefault(name, set()).add(cast("Kind", kind))
            self._fields = {name: frozenset(kinds) for name, kinds in found.items()}
        return self._fields

    def search_dense(
        self, vector: NDArray[np.float32], k: int, search: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best ``k`` places and their scores, best first.

        Args:
            vector: The query's, (D,).
            k: How many.
            search: ``exact`` or ``approximate``; None for what the index's settings say.
        """
        is_near = is_approximate(self.opened.description["settings"], len(self.everyone), search)
        return self.dense.search(
            vector, k, mask=self.mask, condition=self.condition, is_near=is_near
        )

    def narrow(self, wanted: str | Filter) -> View:
        """Return the view that a further filter leaves of this one.

        Raises:
            DataError: If the filter cannot be read, or names an unknown field.
        """
        one = parse_filter(wanted) if isinstance(wanted, str) else wanted
        return View(self.opened, self.population, (*self.filters, one), wider=self)

    def within(self, standing: NDArray[np.bool_]) -> View:
        """Return this view with fewer passages to be found: of the places those set, (P,).

        Rows keep their numbers.
        """
        narrower = copy(self)
        narrower.standing = standing & self.rows.mask
        narrower.mask = narrower.standing
        return narrower

    def stands(self, row: int) -> bool:
        """Return whether a row may be found by the query that this view is for."""
        return self.standing is None or bool(self.standing[self.rows.places[row]])

    def follow(self) -> View:
        """Return the newest snapshot's view of the same population and filters."""
        return View(self.opened.follow(), self.population, self.filters, older=self)

    def rank(
        self,
        search: Callable[[int], tuple[NDArray[np.int64], NDArray[np.floating[Any]]]],
        k: int,
    ) -> Ranking:
        """Return the best ``k`` rows of a search over the segments' rows, ties by row.

        The search breaks ties by the segments' order, so it is asked for more until the last score
        is below that of place ``k``: all that tie are then known.
        """
        depth = k + _SLACK
        while True:
            found, scores = search(depth)
            if len(found) < depth or scores[-1] < scores[k - 1]:
                break
            depth *= 4
        seen = self.rows.rows[found]
        order = np.lexsort((seen, -scores))[:k]
        return [(int(seen[at]), float(scores[at])) for at in order]

    def _number(self, table: Table) -> Rows:
        return Rows(table, self.opened.size, self.opened.where)


def best_positions(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the positions of the ``k`` highest scores, best first, ties by position."""
    if k < len(scores):
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        found = np.flatnonzero(scores >= limit)
    else:
        found = np.arange(len(scores))
    order = np.lexsort((found, -scores[found]))
    return found[order][:k]
