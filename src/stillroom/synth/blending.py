"""Mixing new records with those that were there, so that what people wrote is not crowded out.

Data that replaces its predecessor generation by generation collapses; data that is added to it does
not, or slowly (Gerstgrasser et al. 2024, arXiv:2404.01413; Kazdan et al. 2024, arXiv:2410.16713).
What is left out is a dropped row like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

from stillroom.errors import DataError
from stillroom.records import Record, read_records
from stillroom.synth.graph import MixSettings
from stillroom.synth.harvest import Dropped

__all__ = ["Mixed", "count_origins", "mix_records"]

_FILTER = "mix"


@dataclass(frozen=True, slots=True)
class Mixed:
    """The training records as they are written, what was left out, and how many were there."""

    records: tuple[Record, ...]
    dropped: tuple[Dropped, ...]
    before: int


def mix_records(new: Sequence[Record], settings: MixSettings) -> Mixed:
    """Return the training records of a recipe, mixed as it says.

    What was there comes first. Synthetic records beyond what ``human_share`` allows are left out
    from the end of the new ones, then of the old ones.

    Args:
        new: The records that the recipe made, of the training side.
        settings: What they are mixed with, and how.

    Raises:
        DataError: If a record's origin is unknown and nobody said what to do with it
            (``synth.unknown-origin``), or no record of people is there for ``human_share``
            (``synth.human-share``).
    """
    old = [record for path in settings.records for record in read_records(Path(path))]
    dropped: list[Dropped] = []

    def leave(record: Record, reason: str, score: float = 0.0, limit: float | None = None) -> None:
        dropped.append(Dropped("train", _FILTER, reason, record.id, score, record, limit=limit))

    seen: set[str] = set()
    kept: list[tuple[Record, bool]] = []  # and whether it is new
    for record, is_new in [(one, False) for one in old] + [(one, True) for one in new]:
        if record.id in seen:
            leave(record, "is there already")
        elif record.origin.kind == "unknown" and settings.unknown != "keep":
            if settings.unknown == "refuse":
                raise _refuse_unknown(record)
            leave(record, "origin unknown")
        elif not is_new and settings.rule == "replace" and not _stays(record, settings):
            leave(record, "replaced")
        else:
            seen.add(record.id)
            kept.append((record, is_new))
    for record, share in _crowding(kept, settings.human_share):
        leave(record, "would crowd out what people wrote", share, settings.human_share)
    gone = {one.unit for one in dropped if one.reason.startswith("would crowd")}
    return Mixed(
        tuple(record for record, _ in kept if record.id not in gone), tuple(dropped), len(old)
    )


def count_origins(records: Sequence[Record]) -> dict[str, int]:
    """Return how many records are of each kind of origin."""
    counts = Counter(record.origin.kind for record in records)
    return {kind: counts[kind] for kind in ("human", "synthetic", "unknown")}


def _stays(record: Record, settings: MixSettings) -> bool:
    """Return whether a record outlives its replacement: people's do, where a share is asked."""
    return settings.human_share > 0 and record.origin.kind == "human"


def _crowding(kept: Sequence[tuple[Record, bool]], share: float) -> list[tuple[Record, float]]:
    """Return what must go so that people's share holds, each with the share as it stands."""
    if share <= 0 or not kept:
        return []
    human = sum(record.origin.kind == "human" for record, _ in kept)
    others = [(record, new) for record, new in kept if record.origin.kind != "human"]
    if not human:
        raise DataError(
            f"none of {len(kept)} records is by people, and mix.human_share is {share:g}",
            code="synth.human-share",
            expected="records of origin 'human'",
            next="name files of them under mix.records, or set human_share to 0",
        )
    room = floor(human * (1 - share) / share + 1e-9)
    stands = human / len(kept)
    order = [record for record, new in others if not new] + [r for r, new in others if new]
    return [(record, stands) for record in order[room:]]


def _refuse_unknown(record: Record) -> DataError:
    return DataError(
        f"nobody has told the origin of {record.id}",
        code="synth.unknown-origin",
        expected="human or synthetic, or a recipe that says what to do",
        next="set mix.unknown to keep or drop",
    )
