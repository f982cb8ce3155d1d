"""Structures: what the segments of an index hold beside postings, vectors and their codes.

Follows from the settings alone, so that every segment of an index holds the same, and a structure
is read where its file is listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Structures", "is_approximate"]


@dataclass(frozen=True, slots=True)
class Structures:
    """What a segment is written with.

    ``sketches`` of its vectors, for approximate search; ``sparse``: term weights; ``tokens``:
    vectors of tokens.
    """

    sketches: bool = False
    sparse: bool = False
    tokens: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], passages: int) -> Self:
        """Return what an index of so many passages keeps by its settings."""
        return cls(
            sketches=is_approximate(settings, passages),
            sparse=bool(settings.get("sparse")),
            tokens=bool(settings.get("tokens")),
        )


def is_approximate(settings: Mapping[str, Any], passages: int, search: str | None = None) -> bool:
    """Return whether vectors are searched by their sketches first.

    Args:
        settings: Those of an index; one that was made before there was a choice is exact.
        passages: How many there are to be searched.
        search: What one question asks for: ``exact``, ``approximate`` or ``auto``; None for what
            the settings say.
    """
    dense = settings.get("dense") or {"search": "exact", "from_passages": 0}
    chosen = search or str(dense["search"])
    if chosen == "auto":
        return passages >= (int(dense["from_passages"]) or 1 << 62)
    return chosen == "approximate"
