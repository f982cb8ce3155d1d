"""Answerer: what evaluation asks of an index, whoever built it.

Retrieval is a room above this floor; it enters by the door that users' own plug-ins take: an entry
point of the group ``stillroom.answerers`` whose object opens a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from stillroom.errors import RecipeError
from stillroom.records import Hit, Prompt
from stillroom.registry import suggest

__all__ = ["ANSWERERS", "Answerer", "open_answerer"]

ANSWERERS = "stillroom.answerers"


@runtime_checkable
class Answerer(Protocol):
    """Anything that finds passages for a question and makes a prompt of them."""

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` best passages, best first, ranks from 1."""

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """Return what a model is given to answer the question from the hits."""


def open_answerer(path: Path, name: str = "rag") -> Answerer:
    """Open an index with the plug-in of that name.

    The entry point's object is called with the path: ``open(path: Path) -> Answerer``.

    Raises:
        RecipeError: If no such plug-in is installed.
    """
    for entry in entry_points(group=ANSWERERS, name=name):
        opener = entry.load()
        answerer: Answerer = opener(path)
        return answerer
    known = sorted(entry.name for entry in entry_points(group=ANSWERERS))
    raise RecipeError(
        f"'{name}' is not an installed answerer",
        code="recipe.unknown-answerer",
        expected=f"one of: {', '.join(known) or '(none is installed)'}",
        next=suggest(name, known) or "install Stillroom anew, so that its plug-ins are found",
    )
