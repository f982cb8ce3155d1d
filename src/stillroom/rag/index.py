"""Index: a finished index, open for searching from several threads.

Vectors are memory-mapped, passages are read where they stand, keywords lie in SQLite. Dense search
is exact: every vector is compared. A passage is known by its row: documents by path, passages by
position; equal scores are ordered by row.

Does not know who asks: whoever may open an index may read all of it.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.provenance import find_output
from stillroom.rag.analyzer import Analyzer
from stillroom.rag.fusion import reciprocal_rank
from stillroom.rag.layout import (
    DOCUMENTS,
    LEXICON,
    PASSAGES,
    VECTORS,
    Lines,
    read_description,
)
from stillroom.rag.lexicon import Lexicon
from stillroom.rag.method import (
    DEFAULT_RETRIEVER,
    RERANKERS,
    RETRIEVERS,
    TRANSFORMS,
    Query,
    Reranker,
    Retriever,
    Transform,
    make_query,
)
from stillroom.records import Document, Hit, Passage, content_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder, TextModel

__all__ = ["Index", "best_positions"]

Ranking = list[tuple[int, float]]
_CACHED_QUERIES = 1024
_BLOCK_ROWS = 16_384
RERANK_DEPTH = 50


class Index:
    """A finished index; use ``open``, ``retrieve``, ``passage`` and ``close``."""

    def __init__(self, folder: Path, *, embedder: Embedder | None, verify: bool) -> None:
        """Stand over the files of ``folder``; callers use ``open``."""
        self.folder = folder
        self.description = read_description(folder, verify=verify)
        self.analyzer = self._open_analyzer()
        self.lexicon = Lexicon(folder / LEXICON)
        self._lines = Lines(folder / PASSAGES)
        self._vectors: NDArray[Any] = np.load(folder / VECTORS, mmap_mode="r")
        self._documents: tuple[Lines, dict[str, int]] | None = None
        self._embedder: Embedder | None = None
        self._lock = threading.RLock()
        self._query_vectors: OrderedDict[tuple[str, tuple[str, ...]], NDArray[np.float32]] = (
            OrderedDict()
        )
        try:
            self._check_rows()
            if embedder is not None:
                self._embedder = self._accept(embedder)
        except IntegrityError:
            self.close()
            raise

    @classmethod
    def open(
        cls, path: Path | str, *, embedder: Embedder | None = None, verify: bool = True
    ) -> Self:
        """Open the index of a finished job, or a folder that holds index.json.

        Args:
            path: The artifact's folder or its output.
            embedder: What embeds queries; by default the one the index names, opened when first
                needed.
            verify: Recompute every file's digest (about a second for a gigabyte).

        Raises:
            DataError: If the path is missing or another kind of artifact.
            IntegrityError: If a file is missing, half-written or changed, or the embedder is not
                the one that made the vectors.
        """
        return cls(find_output(Path(path), "index"), embedder=embedder, verify=verify)

    def __len__(self) -> int:
        """Return how many passages there are."""
        return len(self._lines)

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
        return self.description.digest

    @property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, opened when first needed.

        Raises:
            IntegrityError: If what its reference now names is another embedder.
        """
        with self._lock:
            if self._embedder is None:
                from stillroom.models import open_embedder

                self._embedder = self._accept(
                    open_embedder(str(self.description.embedder["reference"]))
                )
            return self._embedder

    def passage(self, passage_id: str) -> Passage:
        """Return a passage by its id.

        Raises:
            DataError: If the index holds no such passage.
        """
        return self.passage_at(self.row_of(passage_id))

    def row_of(self, passage_id: str) -> int:
        """Return the row of a passage by its id.

        Raises:
            DataError: If the index holds no such passage.
        """
        row = self.lexicon.row_of(passage_id)
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
        with self._lock:
            if self._documents is None:
                numbers = {
                    content_id("doc", entry.path, entry.digest): number
                    for number, entry in enumerate(self.description.documents)
                }
                self._documents = Lines(self.folder / DOCUMENTS), numbers
            lines, numbers = self._documents
        if document_id not in numbers:
            raise DataError(
                f"the index holds no document {document_id!r:.80}",
                code="rag.no-such-document",
                where=str(self.folder),
                expected="the document_id of a passage of this index",
                next="ids change when a document changes: retrieve again",
            )
        return Document.from_json(json.loads(lines[numbers[document_id]]))

    def passage_at(self, row: int) -> Passage:
        """Return the passage of a row, from 0."""
        return Passage.from_json(json.loads(self._lines[row]))

    def vectors_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of rows, (N, D) float32."""
        return np.asarray(self._vectors[list(rows)], dtype=np.float32)

    def retrieve(
        self,
        query: str | Query,
        k: int = 10,
        *,
        retriever: str | Retriever = DEFAULT_RETRIEVER,
        reranker: str | Reranker | None = None,
        transform: str | Transform | None = None,
        model: TextModel | None = None,
    ) -> list[Hit]:
        """Return at most ``k`` hits, best first.

        Args:
            query: What to look for; any text, taken as words and never as query syntax.
            k: How many hits; 1 or more.
            retriever: A method of ``stillroom.rag.retrievers``.
            reranker: A method of ``stillroom.rag.rerankers``; reads the first 50 hits or k, and of
                a transform's queries the first.
            transform: A method of ``stillroom.rag.transforms``.
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
            return []
        method = RETRIEVERS.build(retriever)
        depth = max(k, RERANK_DEPTH) if reranker is not None else k
        queries = [asked]
        if transform is not None:
            queries = TRANSFORMS.build(transform).rewrite(asked, self, model)
        hits = self._retrieve_all(method, queries, depth)
        if reranker is not None:
            hits = RERANKERS.build(reranker).rerank(queries[0], hits, self, model)
        return hits[:k]

    def search_keyword(
        self, query: Query, k: int, *, k1: float | None = None, b: float | None = None
    ) -> Ranking:
        """Return the best ``k`` rows by BM25 with their scores; rows without any term never."""
        terms = query.terms or Counter(self.analyzer.query_terms(query.text))
        keyword = self.description.settings["keyword"]
        rows, scores = self.lexicon.score(
            terms,
            k1=float(keyword["k1"] if k1 is None else k1),
            b=float(keyword["b"] if b is None else b),
            heading_weight=float(keyword["heading_weight"]),
        )
        return [(int(rows[at]), float(scores[at])) for at in best_positions(scores, k)]

    def search_dense(self, query: Query, k: int) -> Ranking:
        """Return the best ``k`` rows by cosine with their scores; those not above 0 never."""
        vector = self.embed_query(query)
        scores = np.empty(len(self._vectors), dtype=np.float32)
        for start in range(0, len(scores), _BLOCK_ROWS):
            block = np.asarray(self._vectors[start : start + _BLOCK_ROWS], dtype=np.float32)
            scores[start : start + _BLOCK_ROWS] = block @ vector
        return [
            (int(row), float(scores[row])) for row in best_positions(scores, k) if scores[row] > 0
        ]

    def embed_query(self, query: Query) -> NDArray[np.float32]:
        """Return the query's vector, (D,), averaged with its drafts'; remembered by text."""
        mark = (query.text, query.drafts)
        with self._lock:
            if mark in self._query_vectors:
                self._query_vectors.move_to_end(mark)
                return self._query_vectors[mark]
            vectors = self.embedder.embed([query.text], kind="query")
            if query.drafts:
                drafts = self.embedder.embed(list(query.drafts), kind="passage")
                vectors = np.concatenate([vectors, drafts])
            vector: NDArray[np.float32] = np.asarray(vectors, dtype=np.float32).mean(axis=0)
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
            self._query_vectors[mark] = vector
            if len(self._query_vectors) > _CACHED_QUERIES:
                self._query_vectors.popitem(last=False)
            return vector

    def hits(self, ranking: Iterable[tuple[int, float]]) -> list[Hit]:
        """Return the hits of ranked rows, ranks from 1."""
        return [
            Hit(self.passage_at(row), score, rank)
            for rank, (row, score) in enumerate(ranking, start=1)
        ]

    def close(self) -> None:
        """Close the files; the index cannot be used afterwards."""
        self.lexicon.close()
        self._lines.close()
        if self._documents is not None:
            self._documents[0].close()

    def _retrieve_all(self, method: Retriever, queries: Sequence[Query], depth: int) -> list[Hit]:
        if len(queries) == 1:
            return method.retrieve(queries[0], depth, self)
        lists, passages = [], {}
        for query in queries:
            ranked = []
            for hit in method.retrieve(query, depth, self):
                row = self.lexicon.row_of(hit.passage.id)
                if row is not None:
                    passages[row] = hit.passage
                    ranked.append((row, hit.score))
            lists.append(ranked)
        fused = reciprocal_rank(lists)[:depth]
        return [Hit(passages[row], score, at) for at, (row, score) in enumerate(fused, start=1)]

    def _open_analyzer(self) -> Analyzer:
        told = self.description.analyzer
        analyzer = Analyzer(told["stemming"])
        if analyzer.fingerprint != told["fingerprint"]:
            raise IntegrityError(
                "the installed text analysis differs from the one that made the index",
                code="rag.analyzer-mismatch",
                where=str(self.folder),
                expected=f"analyzer {told['fingerprint'][:16]}",
                next="build the index again, or install the versions named in its artifact.json",
            )
        return analyzer

    def _accept(self, embedder: Embedder) -> Embedder:
        told = self.description.embedder
        if embedder.fingerprint != told["fingerprint"]:
            raise IntegrityError(
                f"the index was made by embedder {told['fingerprint']} ({told['reference']}), "
                f"but {embedder.fingerprint} is given",
                code="rag.embedder-mismatch",
                where=str(self.folder),
                expected="the embedder that made the vectors: others do not compare",
                next="restore that embedder, or build the index again with the new one",
            )
        return embedder

    def _check_rows(self) -> None:
        counts = {len(self._lines), len(self.lexicon), len(self._vectors)}
        if counts != {self.description.counts["passages"]} or self._vectors.ndim != 2:
            raise IntegrityError(
                f"passages, keywords and vectors differ in number: {sorted(counts)}",
                code="rag.index-damaged",
                where=str(self.folder),
                expected=f"{self.description.counts['passages']} of each",
                next="build the index again with --overwrite",
            )


def best_positions(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the positions of the ``k`` highest scores, best first, ties by position."""
    if k < len(scores):
        limit = np.partition(scores, len(scores) - k)[len(scores) - k]
        found = np.flatnonzero(scores >= limit)
    else:
        found = np.arange(len(scores))
    order = np.lexsort((found, -scores[found]))
    return found[order][:k]
