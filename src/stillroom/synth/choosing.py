"""What selectors share: ranks that do not depend on order, and the verdicts on what is not chosen.

Knows records by their ids and numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from stillroom.synth.method import Pool, Selection, Verdict

__all__ = ["BEYOND", "choose", "rank_records", "show"]

BEYOND = "beyond the budget"
_SHOWN = 400


def rank_records(pool: Pool, by: str = "") -> list[int]:
    """Return each record's rank: by a filter's score, the highest first, then by id."""
    scores = [one.get(by, float("-inf")) if by else 0.0 for one in pool.scores]
    ids = [record.id for record in pool.records]
    order = sorted(range(len(ids)), key=lambda at: (-scores[at], ids[at], at))
    ranks = [0] * len(order)
    for rank, at in enumerate(order):
        ranks[at] = rank
    return ranks


def choose(pool: Pool, kept: Iterable[int], reason: str, scores: dict[int, float]) -> Selection:
    """Return a selection that drops all others for one reason, each with its score."""
    chosen = tuple(kept)
    standing = set(chosen)
    dropped = {
        at: Verdict(False, reason, scores.get(at, 0.0))
        for at in range(len(pool.records))
        if at not in standing
    }
    return Selection(chosen, dropped)


def show(pool: Pool, at: int) -> str:
    """Return a record's words, cut short, for the row of one that fell to it."""
    record = pool.records[at]
    words = " | ".join(one.content for one in record.messages)
    return f"{record.id}: {words}"[:_SHOWN]
