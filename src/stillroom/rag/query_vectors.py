"""Query vectors: the embedder of an index, opened when needed, and what it made of queries."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.models.term_weights import TermEncoder
    from stillroom.models.token_states import TokenEncoder
    from stillroom.rag.method import Query
    from stillroom.rag.store.description import Description

__all__ = ["QueryVectors"]

_CACHED_QUERIES = 1024
_CACHED_STATES = 128
T = TypeVar("T")


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
        self._settings = description.settings
        self._weigher: TermEncoder | None = None
        self._reader: TokenEncoder | None = None
        self._terms: OrderedDict[str, Mapping[str, float]] = OrderedDict()
        self._states: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
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

    def terms(self, query: Query) -> Mapping[str, float]:
        """Return the query's terms with the weights of the index's masked language model.

        Raises:
            DataError: If the index keeps no term weights.
            IntegrityError: If what its reference now names is another model.
        """
        with self._lock:
            weigher = self._weigher
            if weigher is None:
                told = self._need("sparse")
                from stillroom.rag.encoders import open_terms

                opened = open_terms(str(told["model"]), int(told["max_terms"]))
                self._hold("sparse", told, opened.fingerprint)
                self._weigher = weigher = opened
            return _remember(self._terms, query.text, lambda: weigher.encode([query.text])[0])

    def tokens(self, query: Query) -> NDArray[np.float32]:
        """Return the vectors of the query's tokens, (Q, D).

        Raises:
            DataError: If the index keeps no token vectors.
            IntegrityError: If what its reference now names is another model.
        """
        with self._lock:
            reader = self._reader
            if reader is None:
                told = self._need("tokens")
                from stillroom.models.token_states import open_token_encoder

                opened = open_token_encoder(str(told["model"]), self.embedder)
                self._hold("tokens", told, opened.fingerprint)
                self._reader = reader = opened
            return _remember(
                self._states, query.text, lambda: reader.encode([query.text], kind="query")[0]
            )

    def _need(self, name: str) -> Mapping[str, Any]:
        """Return what the index says of one of its extras."""
        told = self._settings.get(name)
        if not told:
            what = "term weights" if name == "sparse" else "token vectors"
            raise DataError(
                f"the index keeps no {what}",
                code="rag.no-extras",
                where=str(self._where),
                expected=f"an index made with {name}",
                next=f"build it with {name}.model=..., or use another retriever",
            )
        return dict(told)

    def _hold(self, name: str, told: Mapping[str, Any], fingerprint: str) -> None:
        if fingerprint != told["fingerprint"]:
            raise IntegrityError(
                f"the index's {name} were made by {told['fingerprint']} ({told['model']}), "
                f"which is now {fingerprint}",
                code="rag.embedder-mismatch",
                where=str(self._where),
                expected="the model that made them: others do not compare",
                next="restore that model, or build the index again with the new one",
            )

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


def _remember(known: OrderedDict[str, T], text: str, make: Callable[[], T]) -> T:
    """Return what is kept for a text, made where it is new; the oldest goes."""
    if text in known:
        known.move_to_end(text)
        return known[text]
    found = known[text] = make()
    if len(known) > _CACHED_STATES:
        known.popitem(last=False)
    return found
