"""``Verifier``: what checks an answer by rule, asking no model.

Nothing passes that a verifier cannot decide. Imports no torch, so that a recipe can name one: synth
keeps answers by it, diffusion learns from it as a reward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stillroom.registry import Method, Seam

__all__ = ["VERIFIERS", "Check", "Verifier"]


@dataclass(frozen=True, slots=True)
class Check:
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
    def check(self, text: str, fields: Mapping[str, Any]) -> Check:
        """Return whether a text is right, and why not.

        Args:
            text: What the model said.
            fields: The fields of the task's record.

        Raises:
            ResourceError: If code cannot be isolated here.
            MissingExtraError: If what compares is not installed.
        """


VERIFIERS = Seam("stillroom.evaluate.verifiers", Verifier)
