"""``Verifier``: what decides by rule whether a teacher's answer is right.

A verifier is given the answer's text and the fields of what it answers (the right answer, tests, a
schema), and gives a verdict; it asks no model. What it cannot decide it does not let pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from stillroom.registry import Method, Seam
from stillroom.synth.method import Verdict

__all__ = ["VERIFIERS", "Verifier"]


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
    def check(self, text: str, fields: Mapping[str, Any]) -> Verdict:
        """Return whether a text is right, and why not.

        Args:
            text: What the teacher said.
            fields: The fields of the task's record.

        Raises:
            ResourceError: If code cannot be isolated here.
            MissingExtraError: If what compares is not installed.
        """


VERIFIERS: Seam[Verifier] = Seam("stillroom.synth.verifiers", Verifier)
