"""Which older segments a new one takes in, so that an index never has many.

A search costs a little for every segment, and rewriting rows costs more: the smallest segments go
first, and only as many as keep the number of segments bounded, with those that are small beside
what is gathered already. Every row is thus rewritten about as often as the index grows by a factor.

Source: the log-structured merge tree, O'Neil et al. 1996, doi:10.1007/s002360050048; as Lucene
merges segments by tiers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.schema import FOREVER
from stillroom.rag.store.segments import Merged, open_segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MOST_SEGMENTS", "choose_merged", "kept_rows", "merge_starts"]

MOST_SEGMENTS = 8
_SMALL = 2


def choose_merged(
    folder: Path, ledger: Ledger, gone: Collection[int], rows: int, *, most: int = MOST_SEGMENTS
) -> list[Merged]:
    """Return the segments that a new one should take in, with the rows that are still needed.

    Args:
        folder: The index's.
        ledger: What it holds.
        gone: Keys of documents that the new snapshot will not see.
        rows: How many rows the new segment has of its own.
        most: How many segments there may be afterwards.
    """
    if not ledger.snapshots():
        return []
    kept = {number: rows for number, rows in kept_rows(ledger, gone).items() if rows.any()}
    latest = ledger.find_snapshot().number
    entries = {entry.number: entry for entry in ledger.segments(latest) if entry.number in kept}
    order = sorted(entries, key=lambda number: (int(kept[number].sum()), number))
    spare = len(order) + 1 - most
    if spare <= 0:
        return []
    chosen: list[int] = []
    gathered = rows
    for number in order:
        size = int(kept[number].sum())
        if len(chosen) >= spare and size > _SMALL * gathered:
            break
        chosen.append(number)
        gathered += size
    return [
        Merged(open_segment(folder, entries[number], verify=False), kept[number])
        for number in sorted(chosen)
    ]


def kept_rows(ledger: Ledger, gone: Collection[int]) -> dict[int, NDArray[np.bool_]]:
    """Return which rows of each segment the newest snapshot needs, without documents that go."""
    sizes = {
        int(number): int(rows)
        for number, rows in ledger.query(
            "SELECT number, rows FROM segments WHERE died = ?", (FOREVER,)
        )
    }
    kept = {number: np.zeros(rows, dtype=bool) for number, rows in sizes.items()}
    for key, segment, start, count in ledger.query(
        "SELECT d.key, p.segment, p.start, d.passages FROM documents d JOIN placements p "
        "ON p.document = d.key WHERE d.died = ? AND p.died = ?",
        (FOREVER, FOREVER),
    ):
        if key not in gone:
            kept[segment][start : start + count] = True
    return kept


def merge_starts(merged: Sequence[Merged]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield for each merged segment its number, and where each of its kept rows goes, else -1."""
    offset = 0
    for one in merged:
        starts = offset + np.cumsum(one.kept) - 1
        starts[~one.kept] = -1
        yield one.segment.number, starts.astype(np.int64)
        offset += int(one.kept.sum())
