"""Way: one whole manner of retrieving, written in a line.

``[TRANSFORM>]RETRIEVER[+RERANKER]``, each a method's name, perhaps with settings after a colon:
``convex:alpha=0.3+proximity``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from stillroom.errors import RecipeError
from stillroom.rag.method import (
    RERANKERS,
    RETRIEVERS,
    TRANSFORMS,
    Reranker,
    Retriever,
    Transform,
)
from stillroom.registry import Method, Seam

__all__ = ["Way", "parse_way"]

M = TypeVar("M", bound=Method)


@dataclass(frozen=True, slots=True)
class Way:
    """A retriever, with the transform before it and the reranker after it, if any."""

    name: str
    retriever: Retriever
    reranker: Reranker | None = None
    transform: Transform | None = None


def parse_way(text: str) -> Way:
    """Return the way that a line describes.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest is suggested.
    """
    head, arrow, rest = text.rpartition(">")
    body, plus, last = (rest if arrow else text).partition("+")
    return Way(
        text.strip(),
        _build(RETRIEVERS, body),
        _build(RERANKERS, last) if plus else None,
        _build(TRANSFORMS, head) if arrow else None,
    )


def _build(seam: Seam[M], text: str) -> M:
    name, _, settings = text.strip().partition(":")
    chosen: dict[str, Any] = {"name": name.strip()}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise RecipeError(
                f"{part!r} is no setting",
                code="recipe.override",
                where=text,
                expected="KEY=VALUE",
                next=f"write {name}:{key}=VALUE",
            )
        chosen[key.strip()] = value.strip()
    return seam.build(chosen)
