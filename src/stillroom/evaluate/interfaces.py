"""Base classes: Verifier of answers by rule, and the protocol of a RAG system.

Nothing passes that a verifier cannot decide. Imports no torch, so that a recipe can name one: synth
keeps answers by it, diffusion learns from it as a reward.

Retrieval is a room above this floor; it enters by the door that users' own plug-ins take: an entry
point of the group ``stillroom.answerers`` whose object opens a path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from stillroom.errors import RecipeError
from stillroom.records import Hit, Prompt
from stillroom.registry import Method, Registry, suggest

__all__ = [
    "RAG_SYSTEMS",
    "VERIFIERS",
    "RagSystem",
    "VerificationResult",
    "Verifier",
    "open_rag_system",
]


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """Whether an answer is right; ``reason`` is a short fixed phrase, empty where it is.

    ``score`` is how much of it is right, from 0 to 1, where that can be told.
    """

    keep: bool
    reason: str = ""
    score: float = 1.0


class Verifier(Method, ABC):
    """Checks one text against the fields of its task."""

    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    """Which fields a task must have, one of them at least; empty if none."""

    def lacks(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a task gives nothing to check by."""
        return bool(self.needs) and not any(
            fields.get(name) not in (None, "") for name in self.needs
        )

    @abstractmethod
    def check(self, text: str, fields: Mapping[str, Any]) -> VerificationResult:
        """Return whether a text is right, and why not.

        Args:
            text: What the model said.
            fields: The fields of the task's record.

        Raises:
            ResourceError: If code cannot be isolated here.
            MissingExtraError: If what compares is not installed.
        """


VERIFIERS = Registry("stillroom.evaluate.verifiers", Verifier)


RAG_SYSTEMS = "stillroom.answerers"


@runtime_checkable
class RagSystem(Protocol):
    """Anything that finds passages for a question and makes a prompt of them."""

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` best passages, best first, ranks from 1."""

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """Return what a model is given to answer the question from the hits."""


def open_rag_system(path: Path, name: str = "rag") -> RagSystem:
    """Open an index with the plug-in of that name.

    The entry point's object is called with the path: ``open(path: Path) -> Answerer``.

    Raises:
        RecipeError: If no such plug-in is installed.
    """
    for entry in entry_points(group=RAG_SYSTEMS, name=name):
        opener = entry.load()
        answerer: RagSystem = opener(path)
        return answerer
    known = sorted(entry.name for entry in entry_points(group=RAG_SYSTEMS))
    raise RecipeError(
        f"'{name}' is not an installed answerer",
        code="recipe.unknown-answerer",
        expected=f"one of: {', '.join(known) or '(none is installed)'}",
        next=suggest(name, known) or "install Stillroom anew, so that its plug-ins are found",
    )
