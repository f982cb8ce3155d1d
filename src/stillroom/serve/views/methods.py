"""Which methods a page may offer, as the registry lists them; no method is imported for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from stillroom.registry.listing import find_seams, list_methods

__all__ = ["Offer", "list_offers", "list_ways"]


@dataclass(frozen=True, slots=True)
class Offer:
    """A method's name and the first line of what it says of itself."""

    name: str
    summary: str


@lru_cache(maxsize=32)
def list_offers(seam: str) -> tuple[Offer, ...]:
    """Return the methods of a seam, as ``rag.retrievers``, by name."""
    name = f"stillroom.{seam}"
    found = list_methods({name: find_seams()[name]})
    return tuple(Offer(one.name, one.summary) for one in found)


def list_ways() -> dict[str, tuple[Offer, ...]]:
    """Return what retrieves, what reorders, and what answers."""
    return {
        "retrievers": list_offers("rag.retrievers"),
        "rerankers": list_offers("rag.rerankers"),
        "answering": list_offers("rag.answering"),
    }
