"""Documents of a few words with vectors that follow from them, and indexes built of such."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from stillroom.rag.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.index import Index
from stillroom.rag.store.parts import Entry, Facts, Mark, to_line
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.writer import Writer
from stillroom.records import Document, Location, Passage

WIDTH = 16
WORDS = [f"word{number}" for number in range(40)]


class Embedder:
    """Hashed words in a few dimensions."""

    fingerprint, dimensions, max_tokens, truncated = "test", WIDTH, 1000, 0

    def count_tokens(self, text):
        return len(text.split())

    def embed(self, texts, *, kind):
        return np.array([vector(text) for text in texts])


def vector(text):
    total = np.zeros(WIDTH)
    for word in text.split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        total += np.random.default_rng(seed).normal(size=WIDTH)
    return (total / np.linalg.norm(total)).astype(np.float32)


@dataclass
class Words:
    """A document whose lines are its passages."""

    path: str
    text: str
    front: dict = field(default_factory=dict)

    @property
    def document(self):
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return Document(
            self.path, digest, "text/plain", self.text, title="t", metadata=self.metadata
        )

    @property
    def metadata(self):
        return {"front_matter": self.front} if self.front else {}

    @property
    def entry(self):
        return Entry(self.path, self.document.digest, len(self.text.split("\n")), 0)

    def passages(self):
        document, start = self.document, 0
        for line in self.text.split("\n"):
            place = Location(self.path, document.digest, start, start + len(line))
            yield Passage(document.id, start, start + len(line), line, place, title="t")
            start += len(line) + 1

    def document_line(self):
        return to_line(self.document.to_json())

    def passage_lines(self):
        return [to_line(passage.to_json()) for passage in self.passages()]

    def marks(self):
        lines = self.text.split("\n")
        return [Mark(hashlib.sha256(line.encode()).digest(), False) for line in lines]

    def vectors(self):
        return np.array([vector(line) for line in self.text.split("\n")])


def describe(access="open"):
    analyzer = Analyzer("none")
    return {
        "preparation": "test",
        "settings": {
            "vectors": "float32",
            "access": access,
            "keyword": {"k1": 1.2, "b": 0.75, "heading_weight": 1.0, "stemming": "none"},
        },
        "embedder": {"reference": "test", "fingerprint": "test", "dimensions": WIDTH},
        "analyzer": {
            "version": ANALYZER_VERSION,
            "stemming": "none",
            "fingerprint": analyzer.fingerprint,
        },
    }


def build(folder, model):
    with Writer.create(folder, describe()) as writer:
        puts = [(Words(path, text), Facts()) for path, text in sorted(model.items())]
        writer.commit(Change(puts=puts), reason="built", keep=4)
    return folder


def open_index(folder):
    return Index.open(folder, embedder=Embedder())
