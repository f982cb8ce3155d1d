"""Query vectors: the embedder of an index, opened when needed, and what it made of queries."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.method import Query
    from stillroom.rag.store.description import Description

__all__ = ["QueryVectors"]

_CACHED_QUERIES = 1024


class QueryVectors:
    """Embeds queries with the embedder that made an index's vectors, and with no other."""

    def __init__(self, description: Description, where: Path, embedder: Embedder | None) -> None:
        """Embed for the index that ``description`` is of.

        Raises:
            IntegrityError: If the embedder given is not the one that made the vectors.
        """
        self._told = description.embedder
        self._where = where
        self._lock = threading.RLock()
        self._embedder = None if embedder is None else self._accept(embedder)
        self._known: OrderedDict[tuple[str, tuple[str, ...]], NDArray[np.float32]] = OrderedDict()

    @property
    def embedder(self) -> Embedder:
        """The embedder, opened when first needed.

        Raises:
            IntegrityError: If what its reference now names is another embedder.
        """
        with self._lock:
            if self._embedder is None:
                from stillroom.models import open_embedder

                self._embedder = self._accept(open_embedder(str(self._told["reference"])))
            return self._embedder

    def embed(self, query: Query) -> NDArray[np.float32]:
        """Return the query's vector, (D,), averaged with its drafts'; remembered by text."""
        mark = (query.text, query.drafts)
        with self._lock:
            if mark in self._known:
                self._known.move_to_end(mark)
                return self._known[mark]
            vectors = self.embedder.embed([query.text], kind="query")
            if query.drafts:
                drafts = self.embedder.embed(list(query.drafts), kind="passage")
                vectors = np.concatenate([vectors, drafts])
            vector: NDArray[np.float32] = np.asarray(vectors, dtype=np.float32).mean(axis=0)
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
            self._known[mark] = vector
            if len(self._known) > _CACHED_QUERIES:
                self._known.popitem(last=False)
            return vector

    def _accept(self, embedder: Embedder) -> Embedder:
        if embedder.fingerprint != self._told["fingerprint"]:
            raise IntegrityError(
                f"the index was made by embedder {self._told['fingerprint']} "
                f"({self._told['reference']}), but {embedder.fingerprint} is given",
                code="rag.embedder-mismatch",
                where=str(self._where),
                expected="the embedder that made the vectors: others do not compare",
                next="restore that embedder, or build the index again with the new one",
            )
        return embedder
