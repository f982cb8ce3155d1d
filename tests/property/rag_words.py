"""Indexes built of documents of a few words, in a folder."""

from stillroom.rag.index import Index
from stillroom.rag.store.parts import Facts
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.writer import Writer
from stillroom.testing.words import (
    WordDocument as Words,
)
from stillroom.testing.words import (
    WordEmbedder as Embedder,
)
from stillroom.testing.words import (
    describe_words as describe,
)

__all__ = ["WORDS", "Embedder", "Words", "build", "describe", "open_index"]

WORDS = [f"word{number}" for number in range(40)]


def build(folder, model):
    with Writer.create(folder, describe()) as writer:
        puts = [(Words(path, text), Facts()) for path, text in sorted(model.items())]
        writer.commit(Change(puts=puts), reason="built", keep=4)
    return folder


def open_index(folder):
    return Index.open(folder, embedder=Embedder())
