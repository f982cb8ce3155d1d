"""CachedEmbedder: an embedder that remembers what it has embedded, in one SQLite file.

Keyed by the embedder's fingerprint, the kind of text and the text itself, so that other chunkers'
equal passages, other keyword settings and killed runs cost no embedding twice. Every row is whole
or absent: a kill loses at most the batch at work. Vectors come back bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.jobs.databases import open_shared_database
from stillroom.provenance import digest_text

if TYPE_CHECKING:
    from stillroom.models import Embedder
    from stillroom.models.protocols import TextKind, Vectors

__all__ = ["CachedEmbedder"]

_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, cut INTEGER, vector BLOB)"


class CachedEmbedder:
    """Stands before an embedder; all but ``embed`` and ``truncated`` is the embedder's own.

    ``truncated`` counts recalled texts, too.
    """

    def __init__(self, inner: Embedder, path: Path) -> None:
        """Remember what ``inner`` embeds in the file at ``path``."""
        self._inner = inner
        self._recalled = 0
        self.truncated = inner.truncated
        self.computed = 0
        """How many texts were really embedded."""
        self._store = open_shared_database(path, _TABLE)

    def __getattr__(self, name: str) -> Any:
        """Return what the embedder has beside."""
        return getattr(self._inner, name)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._inner.dimensions

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read."""
        return self._inner.max_tokens

    @property
    def fingerprint(self) -> str:
        """What identifies the weights."""
        return self._inner.fingerprint

    @property
    def count_tokens(self) -> Any:
        """The embedder's own counter, with whatever else it can do."""
        return self._inner.count_tokens

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        """Return one row per text, (N, D) float32; only texts that are new are embedded.

        Raises:
            DataError: If a text is empty.
        """
        keys = [digest_text(f"{self.fingerprint}\n{kind}\n{text}") for text in texts]
        known = {key: row for key in keys if (row := self._look_up(key)) is not None}
        fresh = dict((key, text) for key, text in zip(keys, texts, strict=True) if key not in known)
        if fresh:
            known.update(self._compute(fresh, kind))
        self._recalled += sum(known[key][0] for key in keys if key not in fresh)
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

    def _compute(self, fresh: dict[str, str], kind: TextKind) -> dict[str, tuple[int, Vectors]]:
        before = self._inner.truncated
        vectors = np.asarray(self._inner.embed(list(fresh.values()), kind=kind), dtype=np.float32)
        is_cut = self._inner.truncated > before
        rows = {
            key: (int(is_cut and self._is_too_long(text)), vector)
            for (key, text), vector in zip(fresh.items(), vectors, strict=True)
        }
        self.computed += len(rows)
        with self._store:
            self._store.execute("BEGIN")
            self._store.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                [(key, cut, vector.tobytes()) for key, (cut, vector) in rows.items()],
            )
        return rows

    def _is_too_long(self, text: str) -> bool:
        return self._inner.count_tokens(text) > self._inner.max_tokens
