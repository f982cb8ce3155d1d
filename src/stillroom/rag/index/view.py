"""Search view: the passages that an access context may see, and their search engines.

Two sets of documents: the *population*, which whoever asks may know of, and of these the ones that
a filter leaves. Both searches look at the filter's rows alone, at any selectivity; statistics of
words are counted over the population, so that a filter changes no score, and nothing that may not
be seen shows in one.

An index made with ``access: tenants`` denies: a document is seen only by an Access of its tenant
that holds one of its labels. A document without tenant or without labels is seen by nobody; the
label ``public`` is held by everybody of the tenant. The rule is part of the statement that loads
what an opened index shows, so that there is no second way to its passages, counts and statistics.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stillroom.errors import DataError, ResourceError
from stillroom.provenance import digest_text
from stillroom.rag.search_engines.keyword import KeywordEngine
from stillroom.rag.search_engines.late_interaction import TokenEngine
from stillroom.rag.search_engines.sparse import SparseEngine
from stillroom.rag.storage.filters import (
    FilterExpression,
    SqlCondition,
    compile_filter,
    parse_filter,
)
from stillroom.rag.storage.protocol import DenseSearch, SnapshotReader
from stillroom.rag.storage.snapshots import DocumentTable, PassageRows, is_approximate
from stillroom.rag.types import AuxiliarySnapshot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.storage.filters import FieldKind

__all__ = [
    "AUDIT_FILE",
    "AccessContext",
    "AuditLog",
    "RowRanking",
    "SearchView",
    "build_access_condition",
    "find_top_positions",
]


RowRanking = list[tuple[int, float]]


_SLACK = 16


class SearchView:
    """Rows of an open snapshot, in order of path and position, and what searches them."""

    everyone: PassageRows
    keywords: KeywordEngine
    dense: DenseSearch
    sparse: SparseEngine | None
    tokens: TokenEngine | None
    _fields: Mapping[str, frozenset[FieldKind]] | None

    def __init__(
        self,
        opened: SnapshotReader,
        population: SqlCondition,
        filters: tuple[FilterExpression, ...] = (),
        *,
        wider: SearchView | None = None,
        older: SearchView | None = None,
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

    def _share(self, table: DocumentTable | None) -> None:
        """Make what views of this population have in common."""
        self.everyone = self._number(table or self.opened.load(self.population))
        self.keywords = self.opened.open_keywords(self.everyone, self.population)
        self.dense = self.opened.open_dense(self.everyone, self.population)
        opened, self.sparse, self.tokens = self.opened, None, None
        if isinstance(opened, AuxiliarySnapshot):
            self.sparse = opened.open_sparse(self.everyone)
            self.tokens = opened.open_tokens(self.everyone)
        self._fields = None

    @cached_property
    def condition(self) -> SqlCondition:
        """What a document must meet to be found: population and filters."""
        condition = self.population
        for number, one in enumerate(self.filters):
            own = compile_filter(one, self.fields, f"f{number}_", self.opened.dialect)
            condition = condition.join(own)
        return condition

    @property
    def fields(self) -> Mapping[str, frozenset[FieldKind]]:
        """The fields that documents of the population have, with the kinds of their values."""
        if self._fields is None:
            found: dict[str, set[FieldKind]] = {}
            for name, kind in self.opened.list_fields(self.population):
                found.setdefault(name, set()).add(cast("FieldKind", kind))
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

    def narrow(self, wanted: str | FilterExpression) -> SearchView:
        """Return the view that a further filter leaves of this one.

        Raises:
            DataError: If the filter cannot be read, or names an unknown field.
        """
        one = parse_filter(wanted) if isinstance(wanted, str) else wanted
        return SearchView(self.opened, self.population, (*self.filters, one), wider=self)

    def within(self, standing: NDArray[np.bool_]) -> SearchView:
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

    def follow(self) -> SearchView:
        """Return the newest snapshot's view of the same population and filters."""
        return SearchView(self.opened.follow(), self.population, self.filters, older=self)

    def rank(
        self,
        search: Callable[[int], tuple[NDArray[np.int64], NDArray[np.floating[Any]]]],
        k: int,
    ) -> RowRanking:
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

    def _number(self, table: DocumentTable) -> PassageRows:
        return PassageRows(table, self.opened.size, self.opened.where)


def find_top_positions(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the positions of the ``k`` highest scores, best first, ties by position."""
    if k < len(scores):
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        found = np.flatnonzero(scores >= limit)
    else:
        found = np.arange(len(scores))
    order = np.lexsort((found, -scores[found]))
    return found[order][:k]


AUDIT_FILE = "audit.jsonl"


_PUBLIC_LABEL = "public"


_MAX_PRINCIPALS = 1_000


@dataclass(frozen=True)
class AccessContext:
    """Who asks: a tenant, and the principals (users, groups) that labels may name."""

    tenant: str
    principals: frozenset[str] = frozenset()

    def __init__(self, tenant: str, principals: Iterable[str] = ()) -> None:
        """Ask as one of a tenant.

        Args:
            tenant: Its name; not empty.
            principals: What the asker is or belongs to, as labels have it.

        Raises:
            DataError: If the tenant has no name, or the principals are too many.
        """
        names = frozenset(principals)
        if not tenant or len(names) > _MAX_PRINCIPALS:
            raise DataError(
                f"nobody asks as tenant {tenant!r:.40} with {len(names)} principals",
                code="rag.bad-access",
                expected=f"a tenant's name, and at most {_MAX_PRINCIPALS} principals",
                next="give --tenant, and --principal for each user or group",
            )
        object.__setattr__(self, "tenant", tenant)
        object.__setattr__(self, "principals", names)

    def condition(self) -> SqlCondition:
        """Return what a document must meet to be seen."""
        names = [(f"label{at}", label) for at, label in enumerate(sorted(self.principals))]
        names.append(("label_public", _PUBLIC_LABEL))
        marks = ", ".join(f":{name}" for name, _ in names)
        return SqlCondition(
            "d.tenant = :tenant AND d.key IN "  # noqa: S608
            f"(SELECT document FROM labels WHERE label IN ({marks}))",
            (("tenant", self.tenant), *names),
        )


def build_access_condition(rule: str, access: AccessContext | None, where: Path) -> SqlCondition:
    """Return what documents must meet for an asker, by an index's rule; deny where it is unclear.

    Args:
        rule: ``open`` or ``tenants``, as the index was made.
        access: Who asks.
        where: The index, for errors.

    Raises:
        DataError: If the index has tenants and nobody is named, or has none and somebody is.
    """
    if rule == "open" and access is None:
        return SqlCondition()
    if access is None:
        raise DataError(
            "the index has tenants, and nobody is named who asks",
            code="rag.access-needed",
            where=str(where),
            expected="an Access: a tenant and its principals",
            next="Index.open(path, access=Access(tenant, principals)), or --tenant NAME",
        )
    if rule == "open":
        raise DataError(
            "the index has no tenants: everybody who may open it sees all of it",
            code="rag.no-tenants",
            where=str(where),
            expected="an index made with access: tenants",
            next="leave the tenant out, or build the index with access=tenants metadata=FILE",
        )
    return access.condition()


class AuditLog:
    """A line for every query, appended to a file beside the index; no text of it unless asked."""

    def __init__(
        self, home: Path, access: AccessContext | None, *, with_text: bool = False
    ) -> None:
        """Write to ``audit.jsonl`` in ``home``."""
        self.path, self.access, self.with_text = home / AUDIT_FILE, access, with_text

    def note(self, kind: str, text: str, snapshot: int, digest: str, ids: Sequence[str]) -> None:
        """Append one line.

        Args:
            kind: ``query``, ``read``, or ``cached`` for an answer that was kept.
            text: What was asked; its digest is kept.
            snapshot: The number of the snapshot that was asked.
            digest: And its digest.
            ids: Of the passages that were given, or of the document.

        Raises:
            ResourceError: If it cannot be written: what cannot be noted is not given.
        """
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "tenant": self.access.tenant if self.access else "",
            "principals": sorted(self.access.principals) if self.access else [],
            "snapshot": snapshot,
            "index": digest,
            "query": digest_text(text),
            **({"text": text} if self.with_text else {}),
            "given": list(ids),
        }
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ResourceError(
                f"the query cannot be noted, so it is not answered: {error.strerror or error}",
                code="rag.audit",
                where=str(self.path),
                expected="a file that can be appended to",
                next="free disk space or check permissions, and ask again",
            ) from error
