"""Embedding cache in SQLite: a text that was embedded before is not embedded again.

The cache is keyed by the embedder's fingerprint, the kind of text and the text itself, so that
texts repeated by other chunkers, other keyword settings or interrupted runs are embedded only once.
Rows are written in transactions: an interrupted run loses at most one batch. Vectors are restored
bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.jobs.files import open_cache
from stillroom.provenance import digest_text

if TYPE_CHECKING:
    from stillroom.models import Embedder
    from stillroom.models.interfaces import TextKind, Vectors

__all__ = ["CachedEmbedder"]

_CREATE_TABLE = (
    "CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, cut INTEGER, vector BLOB)"
)

_LARGEST = 1.01  # of the numbers of a unit vector, rounded


class CachedEmbedder:
    """Embedder with a cache in SQLite; other attributes are those of the wrapped embedder.

    ``truncated`` counts texts from the cache, too.
    """

    def __init__(self, inner: Embedder, path: Path) -> None:
        """Open or create the cache at ``path``.

        Raises:
            DataError: If the file is not a cache.
        """
        self._inner = inner
        self._recalled = 0
        self.truncated = inner.truncated
        self.computed = 0
        """Number of texts that were embedded and not read from the cache."""
        self._store = open_cache(path, _CREATE_TABLE, "vectors")

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
            "SELECT cut, vector FROM vectors WHERE key = ? AND typeof(cut) = 'integer'"
            " AND typeof(vector) = 'blob' AND length(vector) = ?",
            (key, 4 * self.dimensions),  # other rows are damage: the text is embedded again
        ).fetchone()
        if row is None:
            return None
        vector: Vectors = np.frombuffer(row[1], dtype=np.float32)
        return (row[0], vector) if (np.abs(vector) <= _LARGEST).all() else None

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
