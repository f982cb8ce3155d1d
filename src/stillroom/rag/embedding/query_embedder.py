"""Query embedding: vectors of a question, by the models that made the vectors of its index.

A query's dense vector is the mean of its own and those of its drafts (HyDE); its term weights and
token vectors are for sparse and late-interaction retrieval.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.models.encoders.retrieval import MultiVectorEncoder, SparseEncoder
    from stillroom.rag.interfaces import Query
    from stillroom.rag.storage.snapshots import IndexConfig

__all__ = ["QueryEmbedder", "open_index_embedder"]

_CACHED_QUERIES = 1024
_CACHED_AUXILIARY = 128
K = TypeVar("K")
T = TypeVar("T")

_AUXILIARY_SETTINGS = {
    "sparse": ("term weights", "store.sparse"),
    "tokens": ("token vectors", "store.late_interaction"),
}


def open_index_embedder(
    recorded: Mapping[str, Any], where: Path, embedder: Embedder | None = None
) -> Embedder:
    """Return the embedder of an index: the given one, or by default that of its reference.

    ``recorded`` is the embedder in the index's description.

    Raises:
        IntegrityError: If it is not the one that made the vectors.
    """
    if embedder is None:
        from stillroom.models import open_embedder

        embedder = open_embedder(str(recorded["reference"]))
    if embedder.fingerprint != recorded["fingerprint"]:
        raise IntegrityError(
            f"the index was made by embedder {recorded['fingerprint']} "
            f"({recorded['reference']}), but {embedder.fingerprint} is given",
            code="rag.embedder-mismatch",
            where=str(where),
            expected="the embedder that made the vectors, with the same prompts for queries and "
            "passages (of an E5 model in its README.md): vectors of others are not comparable",
            next="restore that embedder, or build the index again with the new one",
        )
    return embedder


class QueryEmbedder:
    """Embeds queries with the models that made an index's vectors; caches by text."""

    def __init__(self, description: IndexConfig, where: Path, embedder: Embedder | None) -> None:
        """Create an embedder for the index of a description.

        Raises:
            IntegrityError: If ``embedder`` is not the one that made the vectors.
        """
        self._recorded = description.embedder
        self._where = where
        self._lock = threading.RLock()
        self._embedder = embedder and open_index_embedder(self._recorded, where, embedder)
        self._settings = description.settings
        self._encoders: dict[str, Any] = {}
        self._term_weights: OrderedDict[str, Mapping[str, float]] = OrderedDict()
        self._token_vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._vectors: OrderedDict[tuple[str, tuple[str, ...]], NDArray[np.float32]] = OrderedDict()

    def replace(self, description: IndexConfig, where: Path) -> QueryEmbedder:
        """Return an embedder for another index, of the same open model if that made its vectors."""
        is_same = description.embedder == self._recorded
        return QueryEmbedder(description, where, self._embedder if is_same else None)

    @property
    def embedder(self) -> Embedder:
        """The embedder, opened when first needed.

        Raises:
            IntegrityError: If its reference now leads to another embedder.
        """
        with self._lock:
            if self._embedder is None:
                self._embedder = open_index_embedder(self._recorded, self._where)
            return self._embedder

    def embed(self, query: Query) -> NDArray[np.float32]:
        """Return the query's vector, (D,), averaged with those of its drafts; cached by text."""

        def compute() -> NDArray[np.float32]:
            vectors = self.embedder.embed([query.text], kind="query")
            if query.drafts:
                drafts = self.embedder.embed(list(query.drafts), kind="passage")
                vectors = np.concatenate([vectors, drafts])
            vector: NDArray[np.float32] = np.asarray(vectors, dtype=np.float32).mean(axis=0)
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
            return vector

        with self._lock:
            key = query.text, query.drafts
            return _get_or_compute(self._vectors, key, compute, _CACHED_QUERIES)

    def terms(self, query: Query) -> Mapping[str, float]:
        """Return the query's terms with weights of the index's masked language model.

        Raises:
            DataError: If the index stores no term weights.
            IntegrityError: If the reference now leads to another model.
        """
        with self._lock:
            encoder: SparseEncoder = self._open_encoder("sparse")
            return _get_or_compute(
                self._term_weights, query.text, lambda: encoder.encode([query.text])[0]
            )

    def tokens(self, query: Query) -> NDArray[np.float32]:
        """Return the query's token vectors, (Q, D).

        Raises:
            DataError: If the index stores no token vectors.
            IntegrityError: If the reference now leads to another model.
        """
        with self._lock:
            encoder: MultiVectorEncoder = self._open_encoder("tokens")
            return _get_or_compute(
                self._token_vectors,
                query.text,
                lambda: encoder.encode([query.text], kind="query")[0],
            )

    def _open_encoder(self, name: str) -> Any:
        """Return the encoder of term weights or token vectors, opened when first needed."""
        if name in self._encoders:
            return self._encoders[name]
        settings = self._settings.get(name)
        if not settings:
            label, setting = _AUXILIARY_SETTINGS[name]
            raise DataError(
                f"the index stores no {label}",
                code="rag.no-extras",
                where=str(self._where),
                expected=f"an index built with {setting}",
                next=f"build it with {setting}.model=..., or use another retriever",
            )
        encoder: SparseEncoder | MultiVectorEncoder
        if name == "sparse":
            from stillroom.rag.embedding.passages import open_term_weighter

            encoder = open_term_weighter(str(settings["model"]), int(settings["max_terms"]))
        else:
            from stillroom.models.encoders.retrieval import open_multi_vector_encoder

            encoder = open_multi_vector_encoder(str(settings["model"]), self.embedder)
        if encoder.fingerprint != settings["fingerprint"]:
            raise IntegrityError(
                f"the index's {name} were made by {settings['fingerprint']} ({settings['model']}), "
                f"which is now {encoder.fingerprint}",
                code="rag.embedder-mismatch",
                where=str(self._where),
                expected="the model that made them: vectors of others are not comparable",
                next="restore that model, or build the index again with the new one",
            )
        self._encoders[name] = encoder
        return encoder


def _get_or_compute(
    cache: OrderedDict[K, T], key: K, compute: Callable[[], T], most: int = _CACHED_AUXILIARY
) -> T:
    """Return a cached value, computed if missing; the least recently used value is dropped."""
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    value = cache[key] = compute()
    if len(cache) > most:
        cache.popitem(last=False)
    return value
