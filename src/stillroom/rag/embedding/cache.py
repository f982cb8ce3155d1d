"""Query embeddings of an open index, and an embedder cached in SQLite.

The cache is keyed by the embedder's fingerprint, the kind of text and the text itself, so that
texts repeated by other chunkers, other keyword settings or interrupted runs are embedded only once.
Rows are written in transactions: an interrupted run loses at most one batch. Vectors are restored
bit for bit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs.files import open_shared_database
from stillroom.provenance import digest_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.models.encoders.retrieval import MultiVectorEncoder, SparseEncoder
    from stillroom.models.interfaces import TextKind, Vectors
    from stillroom.rag.interfaces import Query
    from stillroom.rag.storage.snapshots import IndexConfig

__all__ = ["CachedEmbedder", "QueryEmbedder", "open_index_embedder"]


_CACHED_QUERIES = 1024
_CACHED_STATES = 128
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
            expected="the embedder that made the vectors: those of others are not comparable",
            next="restore that embedder, or build the index again with the new one",
        )
    return embedder


class QueryEmbedder:
    """Embeds queries with the embedder that made an index's vectors."""

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
        self._sparse_encoder: SparseEncoder | None = None
        self._token_encoder: MultiVectorEncoder | None = None
        self._terms: OrderedDict[str, Mapping[str, float]] = OrderedDict()
        self._states: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._known: OrderedDict[tuple[str, tuple[str, ...]], NDArray[np.float32]] = OrderedDict()

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
        key = (query.text, query.drafts)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            vectors = self.embedder.embed([query.text], kind="query")
            if query.drafts:
                drafts = self.embedder.embed(list(query.drafts), kind="passage")
                vectors = np.concatenate([vectors, drafts])
            vector: NDArray[np.float32] = np.asarray(vectors, dtype=np.float32).mean(axis=0)
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
            self._known[key] = vector
            if len(self._known) > _CACHED_QUERIES:
                self._known.popitem(last=False)
            return vector

    def terms(self, query: Query) -> Mapping[str, float]:
        """Return the query's terms with weights of the index's masked language model.

        Raises:
            DataError: If the index stores no term weights.
            IntegrityError: If the reference now leads to another model.
        """
        with self._lock:
            weigher = self._sparse_encoder
            if weigher is None:
                settings = self._get_settings("sparse")
                from stillroom.rag.embedding.passages import open_term_weighter

                opened = open_term_weighter(str(settings["model"]), int(settings["max_terms"]))
                self._check_fingerprint("sparse", settings, opened.fingerprint)
                self._sparse_encoder = weigher = opened
            return _get_or_compute(self._terms, query.text, lambda: weigher.encode([query.text])[0])

    def tokens(self, query: Query) -> NDArray[np.float32]:
        """Return the query's token vectors, (Q, D).

        Raises:
            DataError: If the index stores no token vectors.
            IntegrityError: If the reference now leads to another model.
        """
        with self._lock:
            reader = self._token_encoder
            if reader is None:
                settings = self._get_settings("tokens")
                from stillroom.models.encoders.retrieval import open_multi_vector_encoder

                opened = open_multi_vector_encoder(str(settings["model"]), self.embedder)
                self._check_fingerprint("tokens", settings, opened.fingerprint)
                self._token_encoder = reader = opened
            return _get_or_compute(
                self._states, query.text, lambda: reader.encode([query.text], kind="query")[0]
            )

    def _get_settings(self, name: str) -> Mapping[str, Any]:
        """Return the index's settings of term weights or token vectors."""
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
        return dict(settings)

    def _check_fingerprint(self, name: str, settings: Mapping[str, Any], fingerprint: str) -> None:
        if fingerprint != settings["fingerprint"]:
            raise IntegrityError(
                f"the index's {name} were made by {settings['fingerprint']} ({settings['model']}), "
                f"which is now {fingerprint}",
                code="rag.embedder-mismatch",
                where=str(self._where),
                expected="the model that made them: vectors of others are not comparable",
                next="restore that model, or build the index again with the new one",
            )


def _get_or_compute(cache: OrderedDict[str, T], text: str, compute: Callable[[], T]) -> T:
    """Return a cached value, computed if missing; the least recently used value is dropped."""
    if text in cache:
        cache.move_to_end(text)
        return cache[text]
    value = cache[text] = compute()
    if len(cache) > _CACHED_STATES:
        cache.popitem(last=False)
    return value


_CREATE_TABLE = (
    "CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, cut INTEGER, vector BLOB)"
)


class CachedEmbedder:
    """Embedder with a cache in SQLite; other attributes are those of the wrapped embedder.

    ``truncated`` counts texts from the cache, too.
    """

    def __init__(self, inner: Embedder, path: Path) -> None:
        self._inner = inner
        self._recalled = 0
        self.truncated = inner.truncated
        self.computed = 0
        """Number of texts that were embedded and not read from the cache."""
        self._store = open_shared_database(path, _CREATE_TABLE)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped embedder."""
        return getattr(self._inner, name)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._inner.dimensions

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens that are read of a text."""
        return self._inner.max_tokens

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights."""
        return self._inner.fingerprint

    @property
    def count_tokens(self) -> Any:
        """Token counter of the wrapped embedder."""
        return self._inner.count_tokens

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        """Return one row per text, (N, D) float32; only new texts are embedded.

        Raises:
            DataError: If a text is empty.
        """
        keys = [digest_text(f"{self.fingerprint}\n{kind}\n{text}") for text in texts]
        known = {key: row for key in keys if (row := self._look_up(key)) is not None}
        new_texts = dict(
            (key, text) for key, text in zip(keys, texts, strict=True) if key not in known
        )
        if new_texts:
            known.update(self._compute(new_texts, kind))
        self._recalled += sum(known[key][0] for key in keys if key not in new_texts)
        self.truncated = self._inner.truncated + self._recalled
        return np.stack([known[key][1] for key in keys])

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _look_up(self, key: str) -> tuple[int, Vectors] | None:
        row = self._store.execute(
            "SELECT cut, vector FROM vectors WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else (row[0], np.frombuffer(row[1], dtype=np.float32))

    def _compute(self, new_texts: dict[str, str], kind: TextKind) -> dict[str, tuple[int, Vectors]]:
        before = self._inner.truncated
        vectors = np.asarray(
            self._inner.embed(list(new_texts.values()), kind=kind), dtype=np.float32
        )
        has_truncated = self._inner.truncated > before
        rows = {
            key: (int(has_truncated and self._is_too_long(text)), vector)
            for (key, text), vector in zip(new_texts.items(), vectors, strict=True)
        }
        self.computed += len(rows)
        with self._store:
            self._store.execute("BEGIN")
            self._store.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                [
                    (key, is_truncated, vector.tobytes())
                    for key, (is_truncated, vector) in rows.items()
                ],
            )
        return rows

    def _is_too_long(self, text: str) -> bool:
        return self._inner.count_tokens(text) > self._inner.max_tokens
