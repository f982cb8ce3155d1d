"""A teacher that only writes: a server of which text is all that is asked.

What lineage and cards say of a teacher, without a tokenizer and without weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stillroom.distill.teacher_settings import ServerTeacher, teacher_reference
from stillroom.provenance import digest_json

__all__ = ["WritingTeacher"]


@dataclass(frozen=True)
class WritingTeacher:
    """A model behind a server, known by its address and name alone."""

    settings: ServerTeacher

    @property
    def reference(self) -> str:
        """Its address and model."""
        return teacher_reference(self.settings)

    @property
    def name(self) -> str:
        """Its model's name, or its address where the recipe names none."""
        return self.settings.model or self.settings.endpoint

    @property
    def fingerprint(self) -> str:
        """The digest of address and name: the weights are out of reach."""
        return digest_json([self.settings.endpoint, self.settings.model])

    @property
    def license(self) -> str:
        """What the recipe says; empty where it says nothing."""
        return self.settings.license

    @property
    def about(self) -> dict[str, Any]:
        """Where it is."""
        return {"name": self.name, "endpoint": self.settings.endpoint}

    def unload(self) -> None:
        """Do nothing: it takes no memory here."""
