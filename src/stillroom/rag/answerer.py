"""The index as evaluation's plug-in: finds passages for a question and makes a prompt of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.rag.index import Index
from stillroom.rag.parents import retrieve_to_read
from stillroom.rag.prompting import render_prompt
from stillroom.records import Hit, Prompt

__all__ = ["IndexAnswerer", "open_answerer"]


class IndexAnswerer:
    """Answers evaluation's questions from one open index with the default retriever."""

    def __init__(self, index: Index) -> None:
        """Answer from ``index``."""
        self.index = index

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` best passages as they are read, best first, ranks from 1."""
        return retrieve_to_read(self.index, query, k)

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """Return what a model is given to answer the question from the hits."""
        return render_prompt(question, hits)


def open_answerer(path: Path) -> IndexAnswerer:
    """Open the index at ``path``; the entry point ``rag`` of ``stillroom.answerers``."""
    return IndexAnswerer(Index.open(path))
