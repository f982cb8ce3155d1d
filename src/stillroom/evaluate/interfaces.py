"""Base classes: Verifier of answers by rule (verifiable reward), and the protocol of a RAG system.

A text that a verifier cannot decide does not pass. Imports no torch, so that recipes load fast:
synth filters answers with verifiers, diffusion uses them as rewards.

The rag room depends on this package, so it is reached as a plug-in: an entry point of the group
``stillroom.answerers`` whose object opens a path.
"""

from __future__ import annotations

import re
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
    "VERIFIERS",
    "RagSystem",
    "VerificationResult",
    "Verifier",
    "has_weights",
    "open_rag_system",
]


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """Verdict on an answer; ``reason`` is a short fixed phrase, empty if it is right.

    ``score`` is the share that is right, from 0 to 1, where that is defined.
    """

    keep: bool
    reason: str = ""
    score: float = 1.0


class Verifier(Method, ABC):
    """Checks one text against the fields of its task."""

    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of which a task needs at least one; empty if none."""

    def lacks(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a task lacks the fields to check with."""
        return bool(self.needs) and not any(
            fields.get(name) not in (None, "") for name in self.needs
        )

    @abstractmethod
    def check(self, text: str, fields: Mapping[str, Any]) -> VerificationResult:
        """Return whether a text is right, and a reason if not.

        ``fields`` are those of the task's record.

        Raises:
            ResourceError: If code cannot be isolated here.
            MissingExtraError: If a package for the comparison is not installed.
        """


VERIFIERS = Registry("stillroom.evaluate.verifiers", Verifier)
_RAG_SYSTEMS = "stillroom.answerers"
_SCHEME = re.compile(r"(?!hub:)[a-z][a-z0-9+.-]+:")


def has_weights(reference: str) -> bool:
    """Return whether a reference is a local model with weights, not an endpoint."""
    return not _SCHEME.match(reference) and not reference.endswith(".json")


@runtime_checkable
class RagSystem(Protocol):
    """Retriever and prompt builder for questions."""

    def retrieve(self, query: str, k: int) -> list[Hit]:
        """Return the ``k`` best passages, best first, ranks from 1."""

    def prompt(self, question: str, hits: Sequence[Hit]) -> Prompt:
        """Return the prompt to answer the question from the hits."""


def open_rag_system(path: Path, name: str = "rag") -> RagSystem:
    """Open an index with the plug-in of that name.

    The entry point's object is called with the path: ``open(path: Path) -> RagSystem``.

    Raises:
        RecipeError: If no such plug-in is installed.
    """
    for entry in entry_points(group=_RAG_SYSTEMS, name=name):
        opener = entry.load()
        answerer: RagSystem = opener(path)
        return answerer
    known = sorted(entry.name for entry in entry_points(group=_RAG_SYSTEMS))
    raise RecipeError(
        f"'{name}' is not an installed answerer",
        code="recipe.unknown-answerer",
        expected=f"one of: {', '.join(known) or '(none is installed)'}",
        next=suggest(name, known) or "reinstall Stillroom to register its plug-ins",
    )
