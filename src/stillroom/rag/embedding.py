"""Embedding the texts of passages, each distinct one once.

A vector is known by the digest of its text, prefixes included, within one embedder and precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import digest_text
from stillroom.rag.pooling import embed_late
from stillroom.rag.store.parts import Mark

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.store.protocol import Holdings
    from stillroom.records import Document, Passage

__all__ = ["TextVectors"]

_BATCH = 32


class TextVectors:
    """Embeds texts that neither this job nor the index before it has embedded."""

    def __init__(
        self,
        embedder: Embedder,
        dtype: str,
        check: Callable[[], None],
        held: Holdings | None = None,
    ) -> None:
        """Embed for one index.

        Args:
            embedder: What makes vectors.
            dtype: The precision in which they are kept.
            check: Called before each batch; raises to stop.
            held: An index of the same embedder and precision.
        """
        self.embedder, self.dtype, self.check, self.held = embedder, dtype, check, held
        self.embedded = 0
        self._places: dict[bytes, tuple[Path, int, bool]] = {}

    def remember(self, marks: Sequence[Mark], matrix: Path) -> None:
        """Take note of the vectors in a file, one for each mark."""
        for row, mark in enumerate(marks):
            self._places.setdefault(mark.embedded, (matrix, row, mark.is_truncated))

    def embed(
        self, path: str, passages: Sequence[Passage], texts: Sequence[str]
    ) -> tuple[list[Mark], NDArray[np.floating[Any]]]:
        """Return what is known of each passage's vector, and the vectors, (N, D).

        Args:
            path: The document, for errors.
            passages: What the texts are of.
            texts: What is embedded of each, prefixes included.

        Raises:
            DataError: If a vector cannot be compared.
            BackendError: If the embedder fails.
        """
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        matrix = np.empty((len(texts), self.embedder.dimensions), dtype=self.dtype)
        cut = [False] * len(texts)
        first: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            known = self._find(digest) if digest not in first else None
            if known is not None:
                matrix[row], cut[row] = known
            else:
                first.setdefault(digest, row)
        wanted = list(first.values())
        for start in range(0, len(wanted), _BATCH):
            self.check()
            rows = wanted[start : start + _BATCH]
            block, flags = self._embed_batch([texts[row] for row in rows])
            _check_vectors(path, [passages[row] for row in rows], block, self.embedder.dimensions)
            matrix[rows] = np.asarray(block, dtype=self.dtype)
            for row, flag in zip(rows, flags, strict=True):
                cut[row] = flag
            self.embedded += len(rows)
        for row, digest in enumerate(digests):
            if digest in first and first[digest] != row:
                matrix[row], cut[row] = matrix[first[digest]], cut[first[digest]]
        return [Mark(*each) for each in zip(digests, cut, strict=True)], matrix

    def embed_late(
        self, document: Document, passages: Sequence[Passage], reference: str
    ) -> tuple[list[Mark], NDArray[np.floating[Any]]]:
        """Return what is known of each passage's vector, and the vectors, (N, D), pooled late.

        Such a vector follows from all of the document's text: one that differs embeds all anew.

        Args:
            document: The document.
            passages: All of its passages.
            reference: The embedder's, for errors.

        Raises:
            DataError: If a vector cannot be compared.
            BackendError: If the embedder fails.
        """
        text = digest_text(document.text)
        names = [f"late {text} {passage.start} {passage.end}" for passage in passages]
        digests = [hashlib.sha256(name.encode()).digest() for name in names]
        known = [self._find(digest) for digest in digests]
        held = [one for one in known if one is not None]
        if len(held) == len(known):
            return [
                Mark(digest, cut) for digest, (_, cut) in zip(digests, held, strict=True)
            ], np.array([vector for vector, _ in held], dtype=self.dtype)
        self.check()
        before = self.embedder.truncated
        rows = embed_late(document, passages, self.embedder, reference)
        whole = len(rows) - (self.embedder.truncated - before)
        _check_vectors(document.path, passages, rows, self.embedder.dimensions)
        self.embedded += len(rows)
        marks = [Mark(digest, row >= whole) for row, digest in enumerate(digests)]
        return marks, np.asarray(rows, dtype=self.dtype)

    def _find(self, digest: bytes) -> tuple[NDArray[Any], bool] | None:
        place = self._places.get(digest)
        if place is not None:
            matrix, row, is_truncated = place
            return np.load(matrix, mmap_mode="r")[row], is_truncated
        return self.held.vector_of(digest) if self.held is not None else None

    def _embed_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bool]]:
        """Return vectors, and which texts were cut: the longest, as many as were counted."""
        before = self.embedder.truncated
        block = self.embedder.embed(list(texts), kind="passage")
        cut = self.embedder.truncated - before
        flags = [False] * len(texts)
        if cut:
            sizes = [self.embedder.count_tokens(text) for text in texts]
            for row in sorted(range(len(texts)), key=lambda row: -sizes[row])[:cut]:
                flags[row] = True
        return block, flags


def _check_vectors(
    path: str, passages: Sequence[Passage], block: NDArray[np.float32], dimensions: int
) -> None:
    """Refuse what cannot be compared: another width, zeros, infinities, no numbers."""
    if block.shape != (len(passages), dimensions):
        raise DataError(
            f"the embedder gave an array of shape {block.shape}",
            code="rag.bad-vector",
            where=path,
            expected=f"({len(passages)}, {dimensions})",
            next="check the embedder",
        )
    norms = np.linalg.norm(block.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-6))
    if len(bad):
        passage = passages[int(bad[0])]
        raise DataError(
            f"the vector of {path}, characters {passage.start}-{passage.end}, "
            "is zero or not a number",
            code="rag.bad-vector",
            where=path,
            expected="vectors with a direction",
            next="remove the document, or choose another embedder",
        )
