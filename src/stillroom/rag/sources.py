"""What an answer says of its sources: their place, who made them, and what to look twice at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stillroom.rag.flags import flag_text
from stillroom.records import Hit, Origin

__all__ = ["CHECKED", "SUSPECTED", "count_origins", "describe_sources", "name_check", "name_origin"]

SUSPECTED = "forensics.suspected"
"""The method of a link that whoever suspects a medium of being fake adds to its origin's chain."""

CHECKED = "forensics.check."
"""How the method of a link begins that says what a check of the file found."""


def describe_sources(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return the passages that an answer was written from, numbers as in its citations.

    Args:
        hits: In the order of their numbers.

    Returns:
        For each: ``number``, ``passage_id``, ``score`` and ``rank`` as it was retrieved, ``path``,
        ``byte_start``, ``byte_end``, ``is_exact``, ``pages``, ``origin`` (human, synthetic, unknown
        or suspected-fake), ``license`` and ``flags`` (labels of ``stillroom.rag.flags.FLAGS``).
    """
    return [
        {
            "number": number,
            "passage_id": hit.passage.id,
            "score": round(hit.score, 6),
            "rank": hit.rank,
            "path": hit.passage.location.path,
            "byte_start": hit.passage.location.byte_start,
            "byte_end": hit.passage.location.byte_end,
            "is_exact": hit.passage.location.is_exact,
            "pages": list(hit.passage.location.pages),
            "origin": name_origin(hit.passage.origin),
            "checked": name_check(hit.passage.origin),
            "license": hit.passage.origin.license,
            "flags": list(
                flag_text("\n".join([hit.passage.title, *hit.passage.headings, hit.passage.text]))
            ),
        }
        for number, hit in enumerate(hits, 1)
    ]


def count_origins(sources: Sequence[Mapping[str, Any]], cited: Collection[int]) -> dict[str, int]:
    """Return how many sources were made by whom: of those that are cited, or of all if none is.

    Args:
        sources: As ``describe_sources`` gives them.
        cited: The numbers that the answer cites.
    """
    used = [one for one in sources if one["number"] in cited] or sources
    return dict(sorted(Counter(str(one["origin"]) for one in used).items()))


def name_origin(origin: Origin) -> str:
    """Return ``suspected-fake`` where the chain says so, else who made it."""
    suspected = any(link.method.startswith(SUSPECTED) for link in origin.chain)
    return "suspected-fake" if suspected else origin.kind


def name_check(origin: Origin) -> str:
    """Return what a check of the file found, by the chain; empty where none was made."""
    found = [link.method for link in origin.chain if link.method.startswith(CHECKED)]
    return found[-1].removeprefix(CHECKED) if found else ""
