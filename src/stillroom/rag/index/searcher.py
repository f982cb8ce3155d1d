"""Index: a snapshot of an index, open for searching from several threads.

An index is opened as one of its snapshots and shows nothing else until ``refresh``: whatever a
writer does meanwhile, no half of it is seen. A passage is known by its row: documents by path,
passages by position, from 0; equal scores are ordered by row, so that what is found does not depend
on how rows are spread over segments. Vectors and postings are memory-mapped, texts are read from
the ledger where they stand. Searches are exact, but for approximate ones that are asked for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import digest_json, find_output
from stillroom.rag.analysis.phrases import match_clauses, parse_query
from stillroom.rag.embedding.cache import QueryEmbedder
from stillroom.rag.index.view import (
    AccessContext,
    AuditLog,
    RowRanking,
    SearchView,
    build_access_condition,
    find_top_positions,
)
from stillroom.rag.interfaces import (
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    PassageReranker,
    Query,
    QueryTransform,
    Retriever,
    make_query,
)
from stillroom.rag.observability import add_warning, record_retrieval, stage
from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks, rerank_hits
from stillroom.rag.search_engines.keyword import KeywordEngine
from stillroom.rag.storage.filters import FilterExpression, make_unknown_field_error
from stillroom.rag.storage.snapshots import (
    IndexConfig,
    make_damage_error,
    open_analyzer,
    open_store,
    read_tuned_retriever,
)
from stillroom.records import Document, Hit, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder, TextModel
    from stillroom.text.bm25 import BM25Variant

__all__ = ["Index", "find_top_positions"]

RERANK_DEPTH = 50


class Index:
    """A snapshot of an index; use ``open``, ``retrieve``, ``passage`` and ``close``."""

    def __init__(
        self,
        folder: Path,
        description: IndexConfig,
        view: SearchView,
        vectors: QueryEmbedder,
        audit: AuditLog | None,
    ) -> None:
        """Show a view; callers use ``open``."""
        self.folder = folder
        self.description = description
        self.analyzer = open_analyzer(description, folder)
        self._query_vectors = vectors
        self._state = view
        self._audit = audit
        self._lock = threading.Lock()
        self._inside = threading.local()

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
        """Open the index of a finished job, or a folder that holds a ledger.

        Args:
            path: The artifact's folder or its output.
            embedder: What embeds queries; by default the one the index names, opened when first
                needed.
            verify: Recompute every file's digest (about a second for a gigabyte).
            snapshot: An older state, by its number or the beginning of its digest (an answer keeps
                it); by default the newest.
            access: Who asks; must be given for an index with tenants, and for no other.
            audit: Note every query in ``audit.jsonl``; by default where there are tenants.

        Raises:
            DataError: If the path is missing or another kind of artifact, the snapshot is not kept
                any more, or nobody is named who asks an index with tenants.
            IntegrityError: If a file is missing, half-written or changed, or the embedder is not
                the one that made the vectors.
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
        """Return how many passages there are."""
        return len(self._state.rows)

    def __enter__(self) -> Self:
        """Return the index itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the index."""
        self.close()

    @property
    def digest(self) -> str:
        """The digest of this state of the index; answers keep it."""
        return self._state.opened.snapshot.digest

    @property
    def scope(self) -> str:
        """A digest of who asks and by which filters: views that share it show the same."""
        return digest_json([repr(self._state.population), repr(self._state.filters)])

    @property
    def snapshot(self) -> int:
        """The number of the snapshot that is shown."""
        return self._state.opened.snapshot.number

    @cached_property
    def default_retriever(self) -> Retriever:
        """What searches where nobody names a retriever."""
        return read_tuned_retriever(self._state.opened)

    @property
    def lexicon(self) -> KeywordEngine:
        """Terms and how rare they are among the passages that may be seen."""
        return self._state.keywords

    @property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, opened when first needed.

        Raises:
            IntegrityError: If what its reference now names is another embedder.
        """
        return self._query_vectors.embedder

    def refresh(self) -> bool:
        """Show the newest snapshot from now on; return whether that is another one.

        Not while another thread asks, whose rows would be of two snapshots: see ``newest``.
        """
        with self._lock:
            before, self._state = self._state, self.newest()._state
            return self._state is not before

    def newest(self) -> Index:
        """Return an index of the newest snapshot, which is this one where it shows that.

        For servers: one for each question, so that none changes beneath one. Closed with this one.
        """
        old = self._state.opened
        if old.is_newest():
            return self
        view = self._state.follow()
        return Index(self.folder, self.description, view, self._query_vectors, self._audit)

    def restrict(self, wanted: str | FilterExpression) -> Index:
        """Return an index that shows of this one only the documents that a filter leaves.

        It can be restricted further and never widened, and is closed with the one it came from.

        Args:
            wanted: A filter, or its text: ``year >= 2020 and language = en``.

        Raises:
            DataError: If the filter cannot be read, or names a field that no document has.
        """
        view = self._state.narrow(wanted)
        return Index(self.folder, self.description, view, self._query_vectors, self._audit)

    @property
    def fields(self) -> dict[str, list[str]]:
        """The fields that documents have, with the kinds of their values."""
        return {name: sorted(kinds) for name, kinds in sorted(self._state.fields.items())}

    def passage(self, passage_id: str) -> Passage:
        """Return a passage by its id.

        Raises:
            DataError: If the index holds no such passage.
        """
        passage = self.passage_at(self.row_of(passage_id))
        self._note("read", passage_id, [passage_id])
        return passage

    def row_of(self, passage_id: str) -> int:
        """Return the row of a passage by its id.

        Raises:
            DataError: If the index holds no such passage.
        """
        state = self._state
        place = state.opened.locate_passage(passage_id)
        row = state.rows.find(*place) if place is not None else None
        if row is None:
            raise DataError(
                f"the index holds no passage {passage_id!r:.80}",
                code="rag.no-such-passage",
                where=str(self.folder),
                expected="the id of a hit or a citation of this index",
                next="ids change when a document or the chunker changes: retrieve again",
            )
        return row

    def document(self, document_id: str) -> Document:
        """Return a parsed document by its id, as the index read it.

        Raises:
            DataError: If the index holds no such document.
        """
        state = self._state
        content = state.opened.locate_document(document_id)
        if content is None or state.rows.find(content) is None:
            raise DataError(
                f"the index holds no document {document_id!r:.80}",
                code="rag.no-such-document",
                where=str(self.folder),
                expected="the document_id of a passage of this index",
                next="ids change when a document changes: retrieve again",
            )
        self._note("read", document_id, [document_id])
        return Document.from_json(json.loads(state.opened.document(content)))

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row, from 0.

        Raises:
            IntegrityError: If its text is not what was written.
        """
        state = self._state
        content, position = state.rows.locate(row)
        try:
            data = json.loads(state.opened.passage(content, position))
            passage = Passage.from_json(data)
            is_sound = passage.id == data["id"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise make_damage_error(state.opened.where, f"passage {row} is no passage") from error
        if not is_sound:
            raise make_damage_error(state.opened.where, f"passage {data['id']} has another text")
        return passage

    def vectors_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of rows, (N, D) float32."""
        state = self._state
        return state.opened.vectors_at(state.rows.places[np.asarray(rows, dtype=np.int64)])

    def values_of(self, rows: Sequence[int], name: str) -> list[list[str | float]]:
        """Return for each row the values that its document has of a field, in no order.

        Raises:
            DataError: If no document has the field.
        """
        state = self._state
        if name not in state.fields:
            raise make_unknown_field_error(name, state.fields)
        keys = [state.rows.document_of(row) for row in rows]
        found: dict[int, list[str | float]] = {key: [] for key in keys}
        for key, value in state.opened.list_values(name, sorted(found)):
            found[key].append(value)
        return [found[key] for key in keys]

    def retrieve(
        self,
        query: str | Query,
        k: int = 10,
        *,
        retriever: str | Retriever | None = None,
        reranker: str | PassageReranker | None = None,
        transform: str | QueryTransform | None = None,
        model: TextModel | None = None,
    ) -> list[Hit]:
        """Return at most ``k`` hits, best first.

        Args:
            query: What to look for; any text. What stands in quotation marks, or after
                ``headings:`` or ``body:``, must stand so in a hit (``rag.query_syntax``).
            k: How many hits; 1 or more.
            retriever: A method of ``stillroom.rag.retrievers``; by default what ``rag tune`` wrote
                into the index, else ``convex``.
            reranker: A method of ``stillroom.rag.rerankers``; reads the first 50 hits or k, and of
                a transform's queries the first.
            transform: A method of ``stillroom.rag.query_transforms``.
            model: What a transform or a reranker may ask.

        Raises:
            DataError: If k is below 1, or the query too long.
        """
        if k < 1:
            raise DataError(
                f"k is {k}",
                code="rag.bad-depth",
                expected="1 or more hits",
                next="leave k out for 10",
            )
        asked = make_query(query)
        if not asked.text.strip() or not len(self):
            self._note("query", asked.text, [])
            return []
        depth = max(k, RERANK_DEPTH) if reranker is not None else k
        method = self.default_retriever if retriever is None else RETRIEVERS.build(retriever)
        with stage("retrieve") as span, self._as_one_query():
            plain, view = self._apply_syntax(asked)
            queries = [plain]
            if transform is not None:
                with stage("transform"):
                    queries = QUERY_TRANSFORMS.build(transform).rewrite(plain, view, model)
            hits = view._retrieve_all(method, queries, depth)
            if reranker is not None:
                hits = rerank_hits(RERANKERS.build(reranker), queries[0], hits, view, model)
            record_retrieval(span, asked.text, hits[:k], self.digest)
        self._note("query", asked.text, [hit.passage.id for hit in hits[:k]])
        return hits[:k]

    def search_keyword(
        self,
        query: Query,
        k: int,
        *,
        k1: float | None = None,
        b: float | None = None,
        variant: BM25Variant | None = None,
        delta: float | None = None,
    ) -> RowRanking:
        """Return the best ``k`` rows by BM25 with their scores; rows without any term never."""
        state = self._state
        terms = query.terms or self.analyzer.query_terms(query.text)
        keyword = self.description.settings["keyword"]
        own = variant or keyword.get("variant", "lucene")
        lower = keyword.get("delta") if delta is None and variant is None else delta

        def search(depth: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            return state.keywords.search(
                terms,
                depth,
                k1=float(keyword["k1"] if k1 is None else k1),
                b=float(keyword["b"] if b is None else b),
                heading_weight=float(keyword["heading_weight"]),
                variant=own,
                delta=lower,
                mask=state.mask,
            )

        return self._noted(query, state.rank(search, k))

    def search_dense(self, query: Query, k: int, *, search: str | None = None) -> RowRanking:
        """Return the best ``k`` rows by cosine with their scores; those not above 0 never.

        Args:
            query: What to look for.
            k: How many.
            search: ``exact`` or ``approximate``; None for what the index's recipe says.
        """
        state = self._state
        vector = self.embed_query(query)
        found = state.rank(lambda depth: state.search_dense(vector, depth, search), k)
        return self._noted(query, [(row, score) for row, score in found if score > 0])

    def search_sparse(self, query: Query, k: int) -> RowRanking:
        """Return the best ``k`` rows by learned term weights with their scores.

        Raises:
            DataError: If the index keeps no term weights.
        """
        state = self._state
        terms = self._query_vectors.terms(query)
        engine = state.sparse
        if engine is None:
            return self._find_none("sparse")
        found = state.rank(lambda depth: engine.search(terms, depth, mask=state.mask), k)
        return self._noted(query, found)

    def search_tokens(
        self,
        query: Query,
        k: int,
        rows: Iterable[int] | None = None,
        *,
        weigh: Callable[[int], NDArray[np.float32]] | None = None,
    ) -> RowRanking:
        """Return the best ``k`` rows by late interaction (MaxSim) with their scores.

        A score is the mean over the query's vectors of the largest cosine with one of the
        passage's.

        Args:
            query: What to look for.
            k: How many.
            rows: Which rows are compared; None for all.
            weigh: Gives the weights of so many query's vectors, (Q,), 0 or more; None for 1 each.

        Raises:
            DataError: If the index keeps no token vectors.
        """
        state = self._state
        asked = self._query_vectors.tokens(query)
        engine = state.tokens
        if engine is None:
            return self._find_none("tokens")
        if not len(asked):
            return []
        if weigh is not None:  # the largest product with a vector grows as the vector does
            asked = asked * weigh(len(asked))[:, None]
        places = None if rows is None else state.rows.places[np.array(list(rows), dtype=np.int64)]
        found = state.rank(
            lambda depth: engine.search(asked, depth, mask=state.mask, rows=places), k
        )
        return self._noted(query, [(row, score / len(asked)) for row, score in found])

    def _find_none(self, name: str) -> RowRanking:
        """Return nothing of an index without passages; refuse one whose store dropped them."""
        if not len(self._state.everyone):
            return []
        raise DataError(
            f"the store of the index keeps none of what its recipe asks for as {name}",
            code="rag.no-extras",
            where=str(self.folder),
            expected="an index in the store folder",
            next="search it by another retriever, or build it in a folder",
        )

    @property
    def has_tokens(self) -> bool:
        """Whether the index keeps token vectors."""
        return self._state.tokens is not None

    def embed_query(self, query: Query) -> NDArray[np.float32]:
        """Return the query's vector, (D,), averaged with its drafts'; remembered by text."""
        return self._query_vectors.embed(query)

    def hits(self, ranking: Iterable[tuple[int, float]]) -> list[Hit]:
        """Return the hits of ranked rows, ranks from 1."""
        return [
            Hit(self.passage_at(row), score, rank)
            for rank, (row, score) in enumerate(ranking, start=1)
        ]

    def note_cached(self, question: str, hits: Sequence[Hit]) -> None:
        """Note in the audit that a kept answer was given, with what it was written from.

        Raises:
            ResourceError: If it cannot be noted: the answer must then not be given.
        """
        self._note("cached", question, [hit.passage.id for hit in hits])

    def close(self) -> None:
        """Close the files; the index cannot be used afterwards."""
        self._state.opened.close()

    @contextmanager
    def _as_one_query(self) -> Iterator[None]:
        """Within the body searches of this thread are one query, noted when it is done."""
        outer = getattr(self._inside, "retrieving", False)
        self._inside.retrieving = True
        try:
            yield
        finally:
            self._inside.retrieving = outer

    def _noted(self, query: Query, ranking: RowRanking) -> RowRanking:
        if self._audit is not None and not getattr(self._inside, "retrieving", False):
            ids = [self.passage_at(row).id for row, _ in ranking]
            self._note("query", query.text, ids)
        return ranking

    def _note(self, kind: str, text: str, ids: Sequence[str]) -> None:
        if self._audit is not None and not getattr(self._inside, "retrieving", False):
            snapshot = self._state.opened.snapshot
            self._audit.note(kind, text, snapshot.number, snapshot.digest, ids)

    def _apply_syntax(self, asked: Query) -> tuple[Query, Index]:
        """Return a query's words, and an index that shows the passages that stand as it says."""
        text, clauses = parse_query(asked.text)
        if not clauses:
            return asked, self
        state = self._state
        found = match_clauses(clauses, state.keywords, self.analyzer)
        plain = replace(asked, text=text)
        if not (found & state.rows.mask).any():
            add_warning(
                "no passage holds what the query has in quotes or names fields for: words alone"
            )
            return plain, self
        view = Index(
            self.folder, self.description, state.within(found), self._query_vectors, self._audit
        )
        view._inside = self._inside
        return plain, view

    def _retrieve_all(self, method: Retriever, queries: Sequence[Query], depth: int) -> list[Hit]:
        if len(queries) == 1:
            return self._keep_seen(method.retrieve(queries[0], depth, self))
        lists, passages = [], {}
        for query in queries:
            ranked = []
            for hit in self._keep_seen(method.retrieve(query, depth, self)):
                row = self.row_of(hit.passage.id)
                passages[row] = hit.passage
                ranked.append((row, hit.score))
            lists.append(ranked)
        fused = fuse_reciprocal_ranks(lists)[:depth]
        return [Hit(passages[row], score, at) for at, (row, score) in enumerate(fused, start=1)]

    def _keep_seen(self, hits: list[Hit]) -> list[Hit]:
        """Return the hits that stand as a query says, whatever way they were found."""
        if self._state.standing is None:
            return hits
        kept = [hit for hit in hits if self._state.stands(self.row_of(hit.passage.id))]
        return [Hit(hit.passage, hit.score, rank) for rank, hit in enumerate(kept, start=1)]
