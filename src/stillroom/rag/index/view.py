"""Access control of a search (multi-tenancy): the passages that a user may see, by one rule.

There are two sets of documents: the *population*, which the access context allows, and the subset
that matches the filters. Searches look only at the filtered rows, at any selectivity; term
statistics are counted over the population, so that filters do not change scores, and documents
that may not be seen do not affect them.

An index with ``access: tenants`` denies by default: a document is visible only to access contexts
of its tenant with one of its labels. A document without tenant or labels is visible to nobody; the
label ``public`` stands for everybody of the tenant. The rule is part of the SQL statement that
loads the documents, so that passages, counts and statistics cannot bypass it.
"""

from __future__ import annotations

import errno
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
    list_mixed_comparisons,
    parse_filter,
)
from stillroom.rag.storage.protocol import DenseSearch, SnapshotReader
from stillroom.rag.storage.snapshots import DocumentTable, PassageRows, is_approximate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.storage.filters import FieldKind
    from stillroom.rag.types import RankedRows

__all__ = ["AccessContext", "AuditLog", "SearchView", "build_access_condition"]


_SLACK = 16


class SearchView:
    """Rows of an open snapshot, in order of path and position, with their search engines."""

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
        parent: SearchView | None = None,
        older: SearchView | None = None,
    ) -> None:
        """Load the documents of a snapshot that match a condition and filters.

        Args:
            opened: Reader of the snapshot.
            population: Access condition of the documents.
            filters: Filters of the documents that can be found.
            parent: A view of the same snapshot and population, whose engines are shared.
            older: A view of the same population and filters: if only deletions happened since then,
                its tables are reused without the deleted documents.

        Raises:
            DataError: If a filter names an unknown field, or a value of the wrong type.
        """
        self.opened, self.population, self.filters = opened, population, filters
        deleted = older.opened.list_deleted(opened) if older is not None else None
        if parent is None:
            self._share(
                older.everyone.table.without(deleted) if older and deleted is not None else None
            )
        else:
            self.everyone, self._fields = parent.everyone, parent._fields
            self.keywords, self.dense = parent.keywords, parent.dense
            self.sparse, self.tokens = parent.sparse, parent.tokens
        if not filters:
            self.rows = self.everyone
        elif older is not None and deleted is not None:
            self.rows = self._number(older.rows.table.without(deleted))
        else:
            self.rows = self._number(opened.load(self.condition, self.everyone.table))
        self.mask = self.rows.mask if filters else None
        self.match_mask: NDArray[np.bool_] | None = None

    def _share(self, table: DocumentTable | None) -> None:
        """Load the tables and engines that views of the same population share."""
        self.everyone = self._number(table or self.opened.load(self.population))
        self.keywords = self.opened.open_keywords(self.everyone, self.population)
        self.dense = self.opened.open_dense(self.everyone, self.population)
        self.sparse = self.opened.open_sparse(self.everyone)
        self.tokens = self.opened.open_tokens(self.everyone)
        self._fields = None

    @cached_property
    def condition(self) -> SqlCondition:
        """SQL condition of the documents that can be found: population and filters."""
        condition = self.population
        for number, expression in enumerate(self.filters):
            compiled = compile_filter(expression, self.fields, f"f{number}_", self.opened.dialect)
            condition = condition.join(compiled)
        return condition

    @cached_property
    def mixed_comparisons(self) -> tuple[str, ...]:
        """Warnings of comparisons in the filters that leave out values by their type."""
        found = (list_mixed_comparisons(one, self.fields) for one in self.filters)
        return tuple(dict.fromkeys(line for lines in found for line in lines))

    @property
    def fields(self) -> Mapping[str, frozenset[FieldKind]]:
        """Fields of the population's documents, with the types of their values."""
        if self._fields is None:
            kinds_by_name: dict[str, set[FieldKind]] = {}
            for name, kind in self.opened.list_fields(self.population):
                kinds_by_name.setdefault(name, set()).add(cast("FieldKind", kind))
            self._fields = {name: frozenset(kinds) for name, kinds in kinds_by_name.items()}
        return self._fields

    def search_dense(
        self, vector: NDArray[np.float32], k: int, search: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the positions of the best ``k`` rows and their scores, best first.

        ``vector`` is (D,); ``search`` is ``exact`` or ``approximate``, None for the index's
        setting.
        """
        is_near = is_approximate(self.opened.description["settings"], len(self.everyone), search)
        return self.dense.search(
            vector, k, mask=self.mask, condition=self.condition, is_near=is_near
        )

    def filter_documents(self, expression: str | FilterExpression) -> SearchView:
        """Return the view restricted by a further filter.

        Raises:
            DataError: If the filter cannot be parsed, or names an unknown field.
        """
        parsed = parse_filter(expression) if isinstance(expression, str) else expression
        return SearchView(self.opened, self.population, (*self.filters, parsed), parent=self)

    def restrict_rows(self, match_mask: NDArray[np.bool_]) -> SearchView:
        """Return this view restricted to passages by a mask over the segments' rows, (P,).

        Row numbers do not change.
        """
        narrower = copy(self)
        narrower.match_mask = match_mask & self.rows.mask
        narrower.mask = narrower.match_mask
        return narrower

    def is_match(self, row: int) -> bool:
        """Return whether a row is in the mask of this view's query."""
        return self.match_mask is None or bool(self.match_mask[self.rows.places[row]])

    def follow(self) -> SearchView:
        """Return the newest snapshot's view with the same population and filters."""
        return SearchView(self.opened.follow(), self.population, self.filters, older=self)

    def rank(
        self,
        search: Callable[[int], tuple[NDArray[np.int64], NDArray[np.floating[Any]]]],
        k: int,
    ) -> RankedRows:
        """Return the best ``k`` rows of a search over the segments' rows, ties by row.

        The search breaks ties by the segments' order, so its depth is increased until the last
        score is below that of rank ``k``: all ties are then known.
        """
        depth = k + _SLACK
        while True:
            positions, scores = search(depth)
            if len(positions) < depth or scores[-1] < scores[k - 1]:
                break
            depth *= 4
        rows = self.rows.rows[positions]
        order = np.lexsort((rows, -scores))[:k]
        return [(int(rows[index]), float(scores[index])) for index in order]

    def _number(self, table: DocumentTable) -> PassageRows:
        return PassageRows(table, self.opened.size, self.opened.where)


_AUDIT_FILE = "audit.jsonl"
_PUBLIC_LABEL = "public"
_MAX_PRINCIPALS = 1_000


@dataclass(frozen=True)
class AccessContext:
    """Identity of a user: a tenant, and principals (user and groups) that labels may name."""

    tenant: str
    principals: frozenset[str] = frozenset()

    def __init__(self, tenant: str, principals: Iterable[str] = ()) -> None:
        """Create an access context.

        ``tenant`` is not empty; ``principals`` are the user and its groups, as named in labels.

        Raises:
            DataError: If the tenant has no name, or there are too many principals.
        """
        names = frozenset(principals)
        if not tenant or len(names) > _MAX_PRINCIPALS:
            raise DataError(
                f"tenant {tenant!r:.40} with {len(names)} principals is not an access context",
                code="rag.bad-access",
                expected=f"a tenant's name, and at most {_MAX_PRINCIPALS} principals",
                next="give --tenant, and --principal for each user or group",
            )
        object.__setattr__(self, "tenant", tenant)
        object.__setattr__(self, "principals", names)

    def condition(self) -> SqlCondition:
        """Return the SQL condition of visible documents."""
        names = [(f"label{number}", label) for number, label in enumerate(sorted(self.principals))]
        names.append(("label_public", _PUBLIC_LABEL))
        placeholders = ", ".join(f":{name}" for name, _ in names)
        return SqlCondition(
            "d.tenant = :tenant AND d.key IN "  # noqa: S608
            f"(SELECT document FROM labels WHERE label IN ({placeholders}))",
            (("tenant", self.tenant), *names),
        )


def build_access_condition(rule: str, access: AccessContext | None, where: Path) -> SqlCondition:
    """Return the SQL condition of visible documents by an index's access rule.

    ``rule`` is ``open`` or ``tenants``, the access setting of the index.

    Raises:
        DataError: If an index with tenants has no access context, or one without tenants has one.
    """
    if rule == "open" and access is None:
        return SqlCondition()
    if access is None:
        raise DataError(
            "the index has tenants, and no access context is given",
            code="rag.access-needed",
            where=str(where),
            expected="an AccessContext: a tenant and its principals",
            next="Index.open(path, access=AccessContext(tenant, principals)), or --tenant NAME",
        )
    if rule == "open":
        raise DataError(
            "the index has no tenants: everybody who can open it sees all of it",
            code="rag.no-tenants",
            where=str(where),
            expected="an index built with access: tenants",
            next="leave the tenant out, or build the index with access=tenants metadata=FILE",
        )
    return access.condition()


class AuditLog:
    """Log of queries, one JSON line each, in a file beside the index; without their texts."""

    def __init__(self, folder: Path, access: AccessContext | None) -> None:
        self.path, self.access = folder / _AUDIT_FILE, access

    def note(self, kind: str, text: str, snapshot: int, digest: str, ids: Sequence[str]) -> None:
        """Append one line.

        ``kind`` is ``query``, ``read``, or ``cached`` for a cached answer. Of ``text``, a query or
        an id, only the digest is logged; ``ids`` are those of the returned passages, or
        of the document.

        Raises:
            ResourceError: If the line cannot be written; the query must then not be answered.
        """
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "tenant": self.access.tenant if self.access else "",
            "principals": sorted(self.access.principals) if self.access else [],
            "snapshot": snapshot,
            "index": digest,
            "query": digest_text(text),
            "given": list(ids),
        }
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                # No filelock: it needs a second file, and waits in steps of 50 ms for every query.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                size = os.fstat(descriptor).st_size
                if os.write(descriptor, data) < len(data):  # no error where a disk just fills up
                    os.ftruncate(descriptor, size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ResourceError(
                f"the query cannot be logged, so it is not answered: {error.strerror or error}",
                code="rag.audit",
                where=str(self.path),
                expected="a file that can be appended to",
                next="free disk space or check permissions, and ask again",
            ) from error
