"""Which records are learned from, and which only measured.

Where any record names its split, ``train`` is learned from and ``held_out`` measured; data made
elsewhere, that names none, is split by each record's id, a tenth held out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance import digest_text
from stillroom.records import Record, read_records

__all__ = ["Split", "is_learned", "split_records"]

_HELD_OUT_OF = 10


@dataclass(frozen=True, slots=True)
class Split:
    """Records to learn from, records to measure on, and what was passed over by reason."""

    train: list[Record]
    held_out: list[Record]
    passed_over: dict[str, int]


def split_records(path: Path) -> Split:
    """Read records and split them.

    Raises:
        DataError: If there is nothing to learn from.
    """
    passed_over: Counter[str] = Counter()
    reasons: list[str] = []

    def drop(row: int, reason: str) -> None:
        passed_over["unreadable row"] += 1
        if not reasons:
            reasons.append(f"row {row}: {reason}")

    every = list(read_records(path, on_drop=drop))
    has_splits = any("split" in record.fields for record in every)
    train, held_out = [], []
    for record in every:
        split = _split_of(record, has_splits=has_splits)
        if split == "train":
            train.append(record)
        elif split == "held_out":
            held_out.append(record)
        else:
            passed_over[f"split {split!r:.40}"] += 1
    if not train:
        raise DataError(
            f"{path} has no record to learn from{''.join(f'; {one}' for one in reasons)}",
            code="train.no-records",
            where=str(path),
            expected="records with fields.split 'train', or records that name no split",
            next="check how the records were made: stillroom show shows their splits",
        )
    return Split(train, held_out, dict(passed_over))


def is_learned(record: Record, *, has_splits: bool) -> bool:
    """Whether a record is learned from, in a file of which some records name a split or none."""
    return bool(_split_of(record, has_splits=has_splits) == "train")


def _split_of(record: Record, *, has_splits: bool) -> Any:
    if has_splits:
        return record.fields.get("split")
    return "held_out" if int(digest_text(record.id)[:8], 16) % _HELD_OUT_OF == 0 else "train"
