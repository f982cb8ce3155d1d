"""Index: one snapshot of an index, open for searching from several threads.

An index (vector store, document store) stores and searches: by words, vectors, term weights and
token vectors. What is searched for a question, and what is done with the hits, is
``rag.retrieval.pipeline``.

An open index shows one snapshot until ``refresh``, also if writers commit newer ones. A passage is
identified by its row: documents by path, passages by position, from 0. Equal scores are ordered by
row, so that results do not depend on how rows are spread over segments. Vectors and postings are
memory-mapped, texts are read from the catalog. Searches are exact unless approximate search is set.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import digest_json, find_output
from stillroom.provenance.digests import load_json
from stillroom.rag.analysis.phrases import match_clauses
from stillroom.rag.embedding.query_embedder import QueryEmbedder
from stillroom.rag.index.view import AccessContext, AuditLog, SearchView, build_access_condition
from stillroom.rag.observability import Span, stage
from stillroom.rag.search_engines.keyword import KeywordEngine
from stillroom.rag.storage.filters import FilterExpression, make_unknown_field_error
from stillroom.rag.storage.snapshots import (
    IndexConfig,
    make_damage_error,
    open_analyzer,
    open_store,
)
from stillroom.records import Document, Hit, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.analysis.phrases import PhraseClause
    from stillroom.rag.interfaces import Query
    from stillroom.rag.types import RankedRows

__all__ = ["Index"]

_LANGUAGE_SAMPLE = 1_000
_KEPT_DOCUMENTS = 8  # of a question


class Index:
    """A snapshot of an index; use ``open``, ``search_dense``, ``passage`` and ``close``."""

    def __init__(
        self,
        folder: Path,
        description: IndexConfig,
        view: SearchView,
        vectors: QueryEmbedder,
        audit: AuditLog | None,
    ) -> None:
        self.folder = folder
        self.description = description
        self.analyzer = open_analyzer(description, folder)
        self._query_vectors = vectors
        self._state = view
        self._audit = audit
        self._lock = threading.Lock()
        self._thread_state = threading.local()
        self._documents: dict[int, Document] | None = None

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        embedder: Embedder | None = None,
        verify: bool = True,
        snapshot: int | str | None = None,
        access: AccessContext | None = None,
        audit: bool | None = None,
    ) -> Self:
        """Open the index of a finished job, or a folder with a catalog.

        Args:
            path: Folder of the artifact or its output.
            embedder: Embedding model for queries; by default the index's own, opened when first
                needed.
            verify: Recompute every file's digest (about a second per gigabyte).
            snapshot: An older snapshot, by its number or the start of its digest (an answer records
                it); by default the newest.
            access: Access context; required for an index with tenants, and only there.
            audit: Log every query in ``audit.jsonl``; by default where there are tenants.

        Raises:
            DataError: If the path is missing or another kind of artifact, the snapshot was removed,
                or an index with tenants is opened without an access context.
            IntegrityError: If a file is missing, incomplete or changed, or the embedder is not the
                one that made the vectors.
        """
        folder = find_output(Path(path), "index")
        opened = open_store(folder).read(snapshot, verify=verify)
        try:
            description = IndexConfig.from_json(opened.description)
            rule = str(description.settings.get("access", "open"))
            view = SearchView(opened, build_access_condition(rule, access, folder))
            notes = AuditLog(folder.parent, access) if audit or (audit is None and access) else None
            vectors = QueryEmbedder(description, folder, embedder)
            return cls(folder, description, view, vectors, notes)
        except BaseException:
            opened.close()
            raise

    def __len__(self) -> int:
        return len(self._state.rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def digest(self) -> str:
        """Digest of the snapshot; answers record it."""
        return self._state.opened.snapshot.digest

    @property
    def scope(self) -> str:
        """Digest of access context and filters: views with equal scope show the same documents."""
        return digest_json([repr(self._state.population), repr(self._state.filters)])

    @property
    def snapshot(self) -> int:
        """Number of the snapshot."""
        return self._state.opened.snapshot.number

    @property
    def lexicon(self) -> KeywordEngine:
        """Terms of the visible passages and their document frequencies."""
        return self._state.keywords

    @property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, opened when first needed.

        Raises:
            IntegrityError: If its reference now leads to another embedder.
        """
        return self._query_vectors.embedder

    def refresh(self) -> bool:
        """Switch to the newest snapshot; return whether it is another one.

        Not safe while another thread searches, since rows of two snapshots would mix: see
        ``newest``.
        """
        with self._lock:
            before, self._state = self._state, self.newest()._state
            return self._state is not before

    def newest(self) -> Index:
        """Return an index of the newest snapshot, which may be this one.

        For servers: use one index per question, so that it does not change meanwhile. It is closed
        with this one.
        """
        reader = self._state.opened
        if reader.is_newest():
            return self
        return self._show(self._state.follow())

    def restrict(self, expression: str | FilterExpression) -> Index:
        """Return an index of only those documents of this one that match a filter.

        It can be restricted further but not widened, and is closed with this one.

        ``expression`` is a filter, or its text: ``year >= 2020 and language = en``.

        Raises:
            DataError: If the filter cannot be parsed, or names a field that no document has.
        """
        return self._show(self._state.filter_documents(expression))

    def restrict_to_clauses(self, clauses: tuple[PhraseClause, ...]) -> Index | None:
        """Return an index of only the passages that match phrases and fields; None without any.

        Row numbers and scores do not change. Searches of both count as one query of the audit log
        within ``one_query`` of either.
        """
        state = self._state
        matches = match_clauses(clauses, state.keywords, self.analyzer)
        if not (matches & state.rows.mask).any():
            return None
        narrowed = self._show(state.restrict_rows(matches))
        narrowed._thread_state = self._thread_state
        return narrowed

    def keep_matching(self, ranking: RankedRows) -> RankedRows:
        """Return the rows that match the clauses of ``restrict_to_clauses``."""
        if self._state.match_mask is None:
            return ranking
        return [(row, score) for row, score in ranking if self._state.is_match(row)]

    def keep_documents(self) -> Index:
        """Return this index for one question: the last 8 documents that it returned stay decoded.

        Not for several threads at once. It is closed with this one.
        """
        kept = copy(self)
        kept._documents = {}
        return kept

    def _show(self, view: SearchView) -> Index:
        return Index(self.folder, self.description, view, self._query_vectors, self._audit)

    @property
    def is_filtered(self) -> bool:
        """Whether this is an index that ``restrict`` returned."""
        return bool(self._state.filters)

    @property
    def mixed_comparisons(self) -> tuple[str, ...]:
        """Warnings of comparisons in the filters that leave out values by their type."""
        return self._state.mixed_comparisons

    @property
    def fields(self) -> dict[str, list[str]]:
        """Fields of the documents, with the types of their values."""
        return {name: sorted(kinds) for name, kinds in sorted(self._state.fields.items())}

    @property
    def languages(self) -> list[str]:
        """Languages of the documents, whatever the filters; of many, of up to a thousand."""
        keys = self._state.everyone.table.keys
        sample = keys[:: len(keys) // _LANGUAGE_SAMPLE + 1].tolist()
        return [str(value) for _, value in self._state.opened.list_values("language", sample)]

    def passage(self, passage_id: str) -> Passage:
        """Return a passage by its id.

        Raises:
            DataError: If the index has no such passage.
        """
        passage = self.passage_at(self.row_of(passage_id))
        self._log("read", passage_id, [passage_id])
        return passage

    def find_row(self, passage_id: str) -> int | None:
        """Return the row of a passage by its id, or None if the index has no such passage."""
        position = self._state.opened.locate_passage(passage_id)
        return None if position is None else self._state.rows.find(*position)

    def row_of(self, passage_id: str) -> int:
        """Return the row of a passage by its id.

        Raises:
            DataError: If the index has no such passage.
        """
        row = self.find_row(passage_id)
        if row is None:
            raise DataError(
                f"the index has no passage {passage_id!r:.80}",
                code="rag.no-such-passage",
                where=str(self.folder),
                expected="the id of a hit or a citation of this index",
                next="ids change when a document or the chunker changes: retrieve again",
            )
        return row

    def document(self, document_id: str) -> Document:
        """Return a parsed document by its id.

        Raises:
            DataError: If the index has no such document.
        """
        state = self._state
        content = state.opened.locate_document(document_id)
        if content is None or state.rows.find(content) is None:
            raise DataError(
                f"the index has no document {document_id!r:.80}",
                code="rag.no-such-document",
                where=str(self.folder),
                expected="the document_id of a passage of this index",
                next="ids change when a document changes: retrieve again",
            )
        self._log("read", document_id, [document_id])
        if self._documents is None:
            return Document.from_json(json.loads(state.opened.document(content)))
        document = self._documents.pop(content, None)
        if document is None:
            document = Document.from_json(json.loads(state.opened.document(content)))
        self._documents[content] = document  # the last one used
        if len(self._documents) > _KEPT_DOCUMENTS:
            del self._documents[next(iter(self._documents))]
        return document

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row, from 0.

        Raises:
            IntegrityError: If its text has changed.
        """
        state = self._state
        content, position = state.rows.locate(row)
        try:
            data = load_json(state.opened.passage(content, position))
            passage = Passage.from_json(data)
            is_sound = passage.id == data["id"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise make_damage_error(
                state.opened.where, f"passage {row} is not a passage"
            ) from error
        if not is_sound:
            raise make_damage_error(state.opened.where, f"passage {data['id']} has another text")
        return passage

    def vectors_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of rows, (N, D) float32."""
        state = self._state
        return state.opened.vectors_at(state.rows.places[np.asarray(rows, dtype=np.int64)])

    def values_of(self, rows: Sequence[int], name: str) -> list[list[str | float]]:
        """Return the values of a metadata field for each row's document, unordered.

        Raises:
            DataError: If no document has the field.
        """
        state = self._state
        if name not in state.fields:
            raise make_unknown_field_error(name, state.fields)
        keys = [state.rows.document_of(row) for row in rows]
        values: dict[int, list[str | float]] = {key: [] for key in keys}
        for key, value in state.opened.list_values(name, sorted(values)):
            values[key].append(value)
        return [values[key] for key in keys]

    def search_keyword(
        self,
        query: Query,
        k: int,
        *,
        k1: float | None = None,
        b: float | None = None,
    ) -> RankedRows:
        """Return the best ``k`` rows by BM25 with their scores, without rows that match no term."""
        state = self._state
        terms = query.terms or self.analyzer.query_terms(query.text)
        keyword = self.description.settings["keyword"]

        def search(depth: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            return state.keywords.search(
                terms,
                depth,
                k1=float(keyword["k1"] if k1 is None else k1),
                b=float(keyword["b"] if b is None else b),
                heading_weight=float(keyword["heading_weight"]),
                mask=state.mask,
            )

        with stage("keyword") as span:
            return self._record_search(span, query, state.rank(search, k))

    def search_dense(self, query: Query, k: int, *, search: str | None = None) -> RankedRows:
        """Return the best ``k`` rows by cosine with their scores, without scores of 0 or less.

        ``search`` is ``exact`` or ``approximate``; None for the setting of the index's recipe.
        """
        state = self._state
        with stage("embed") as span:
            vector = self.embed_query(query)
            if span.is_recording:
                span.set_attributes(embedding__model_name=self.embedder.fingerprint)
        with stage("dense") as span:
            ranking = state.rank(lambda depth: state.search_dense(vector, depth, search), k)
            positive = [(row, score) for row, score in ranking if score > 0]
            return self._record_search(span, query, positive)

    def search_sparse(self, query: Query, k: int) -> RankedRows:
        """Return the best ``k`` rows by learned term weights with their scores.

        Raises:
            DataError: If the index stores no term weights.
        """
        state = self._state
        with stage("sparse") as span:
            terms = self._query_vectors.terms(query)
            engine = state.sparse
            if engine is None:
                return self._reject_missing("sparse")
            ranking = state.rank(lambda depth: engine.search(terms, depth, mask=state.mask), k)
            return self._record_search(span, query, ranking)

    def search_tokens(
        self,
        query: Query,
        k: int,
        rows: Iterable[int] | None = None,
        *,
        weigh: Callable[[int], NDArray[np.float32]] | None = None,
    ) -> RankedRows:
        """Return the best ``k`` rows by late interaction (MaxSim) with their scores.

        A score is the mean over the query's token vectors of the largest cosine with one of the
        passage's.

        ``rows`` are those to compare, by default all. ``weigh`` returns the weights of Q query
        vectors, (Q,), 0 or more; by default 1 each.

        Raises:
            DataError: If the index stores no token vectors.
        """
        state = self._state
        with stage("tokens") as span:
            vectors = self._query_vectors.tokens(query)
            engine = state.tokens
            if engine is None:
                return self._reject_missing("tokens")
            if not len(vectors):
                return []
            if weigh is not None:  # the largest product scales with the vector
                vectors = vectors * weigh(len(vectors))[:, None]
            segment_rows = (
                None if rows is None else state.rows.places[np.array(list(rows), dtype=np.int64)]
            )
            ranking = state.rank(
                lambda depth: engine.search(vectors, depth, mask=state.mask, rows=segment_rows), k
            )
            means = [(row, score / len(vectors)) for row, score in ranking]
            return self._record_search(span, query, means)

    def _reject_missing(self, name: str) -> RankedRows:
        """Return an empty ranking of an empty index; raise an error if the store has no vectors."""
        if not len(self._state.everyone):
            return []
        raise DataError(
            f"the store of the index does not keep {name}, which its recipe asks for",
            code="rag.no-extras",
            where=str(self.folder),
            expected="an index in the store folder",
            next="search it by another retriever, or build it in a folder",
        )

    @property
    def has_tokens(self) -> bool:
        """Whether the index stores token vectors."""
        return self._state.tokens is not None

    def embed_query(self, query: Query) -> NDArray[np.float32]:
        """Return the query's vector, (D,), averaged with those of its drafts; cached by text."""
        return self._query_vectors.embed(query)

    def hits(self, ranking: Iterable[tuple[int, float]]) -> list[Hit]:
        """Return the hits of ranked rows, ranks from 1."""
        return [
            Hit(self.passage_at(row), score, rank)
            for rank, (row, score) in enumerate(ranking, start=1)
        ]

    def log_query(self, text: str, hits: Sequence[Hit], *, kind: str = "query") -> None:
        """Log a query and its passages in the audit file; ``cached`` for a cached answer.

        Raises:
            ResourceError: If it cannot be logged: hits and answer must then not be returned.
        """
        self._log(kind, text, [hit.passage.id for hit in hits])

    def close(self) -> None:
        """Close the files; the index cannot be used afterwards."""
        self._state.opened.close()

    @contextmanager
    def one_query(self) -> Iterator[None]:
        """Log no search of this thread in the body; the caller calls ``log_query``."""
        outer = getattr(self._thread_state, "retrieving", False)
        self._thread_state.retrieving = True
        try:
            yield
        finally:
            self._thread_state.retrieving = outer

    def _record_search(self, span: Span, query: Query, ranking: RankedRows) -> RankedRows:
        """Record a search in its span and in the audit log."""
        span.set_attributes(stillroom__rows=len(ranking), gen_ai__data_source__id=self.digest)
        if self._audit is not None and not getattr(self._thread_state, "retrieving", False):
            self._log("query", query.text, [self.passage_at(row).id for row, _ in ranking])
        return ranking

    def _log(self, kind: str, text: str, ids: Sequence[str]) -> None:
        if self._audit is not None and not getattr(self._thread_state, "retrieving", False):
            snapshot = self._state.opened.snapshot
            self._audit.note(kind, text, snapshot.number, snapshot.digest, ids)
