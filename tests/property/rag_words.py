"""Indexes built of documents of a few words, in a folder."""

from stillroom.rag.index.searcher import Index
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.types import DocumentMetadata
from stillroom.testing.store import WordDocument as Words
from stillroom.testing.store import WordEmbedder as Embedder
from stillroom.testing.store import describe_word_index as describe

__all__ = ["WORDS", "Embedder", "Words", "build", "describe", "open_index"]

WORDS = [f"word{number}" for number in range(40)]


def build(folder, model):
    with FolderIndexWriter.create(folder, describe()) as writer:
        puts = [(Words(path, text), DocumentMetadata()) for path, text in sorted(model.items())]
        writer.commit(IndexUpdate(puts=puts), reason="built", keep=4)
    return folder


def open_index(folder):
    return Index.open(folder, embedder=Embedder())
