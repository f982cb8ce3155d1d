"""Documents of a few words whose vectors follow from them: what stores are tried with.

A line is a passage. Nothing is parsed and nothing embedded, so that thousands of changes are tried
in seconds, and any two indexes of the same documents must be equal to the last digit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.rag.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.store.parts import Entry, Mark, to_line
from stillroom.records import Document, Location, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models.protocols import TextKind, Vectors

__all__ = ["WordDocument", "WordEmbedder", "describe_words", "word_vector"]

_WIDTH = 16


class WordEmbedder:
    """Hashed words in a few dimensions."""

    fingerprint = "test"
    dimensions = _WIDTH
    max_tokens = 1000
    truncated = 0

    def count_tokens(self, text: str) -> int:
        """Return how many words there are."""
        return len(text.split())

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        """Return one row a text, (N, D) float32."""
        return np.array([word_vector(text) for text in texts])


@lru_cache(maxsize=4096)
def _word(word: str) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).normal(size=_WIDTH)


def word_vector(text: str) -> NDArray[np.float32]:
    """Return the normalized sum of a text's words' vectors, (D,)."""
    total = np.zeros(_WIDTH)
    for word in text.split():
        total += _word(word)
    return np.asarray(total / np.linalg.norm(total), dtype=np.float32)


@dataclass
class WordDocument:
    """A document whose lines are its passages; a ``Part`` of an index."""

    path: str
    text: str
    front: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> Document:
        """The document as a parser would give it."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        told = {"front_matter": dict(self.front)} if self.front else {}
        return Document(self.path, digest, "text/plain", self.text, title="t", metadata=told)

    @property
    def entry(self) -> Entry:
        """What the index says of the document."""
        return Entry(self.path, self.document.digest, len(self.text.split("\n")), 0)

    def passages(self) -> Iterator[Passage]:
        """Yield the lines with their places."""
        document, start = self.document, 0
        for line in self.text.split("\n"):
            place = Location(self.path, document.digest, start, start + len(line))
            yield Passage(document.id, start, start + len(line), line, place, title="t")
            start += len(line) + 1

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return to_line(self.document.to_json())

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return [to_line(passage.to_json()) for passage in self.passages()]

    def marks(self) -> list[Mark]:
        """Return what is known of each passage's vector."""
        lines = self.text.split("\n")
        return [Mark(hashlib.sha256(line.encode()).digest(), False) for line in lines]

    def vectors(self) -> NDArray[np.float32]:
        """Return the passages' vectors, (N, D)."""
        return np.array([word_vector(line) for line in self.text.split("\n")])


def describe_words(access: str = "open", **settings: Any) -> dict[str, Any]:
    """Return what shapes an index of such documents.

    Args:
        access: ``open`` or ``tenants``.
        settings: Beside those that every index has.
    """
    return {
        "preparation": "test",
        "settings": {
            "vectors": "float32",
            "access": access,
            "keyword": {"k1": 1.2, "b": 0.75, "heading_weight": 1.0, "stemming": "none"},
            **settings,
        },
        "embedder": {"reference": "test", "fingerprint": "test", "dimensions": _WIDTH},
        "analyzer": {
            "version": ANALYZER_VERSION,
            "stemming": "none",
            "fingerprint": Analyzer("none").fingerprint,
        },
    }
