"""Snapshots: the states of an index that can be opened, and how one of them is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import DataError, IntegrityError

__all__ = ["Snapshot", "damaged", "pick_snapshot"]

_SHORTEST_DIGEST = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of an index: its number, the digest of what it holds, and how it came about."""

    number: int
    digest: str
    parent: int
    reason: str
    documents: int
    passages: int
    truncated: int
    made: str

    @property
    def counts(self) -> dict[str, int]:
        """How many documents and passages there are, and passages cut by the embedder."""
        return {
            "documents": self.documents,
            "passages": self.passages,
            "truncated": self.truncated,
        }


def pick_snapshot(known: Sequence[Snapshot], wanted: int | str | None, where: Path) -> Snapshot:
    """Return a snapshot by its number or by its digest's beginning; by default the newest.

    Of several with one digest the newest is taken: they hold the same.

    Args:
        known: What there is, oldest first.
        wanted: Number, beginning of a digest, or None.
        where: The ledger, for errors.

    Raises:
        DataError: If there is none, or none any more.
        IntegrityError: If there is none at all.
    """
    text = str(wanted)
    for snapshot in reversed(known):
        is_digest = len(text) >= _SHORTEST_DIGEST and snapshot.digest.startswith(text)
        if wanted is None or text == str(snapshot.number) or is_digest:
            return snapshot
    if wanted is None:
        raise damaged(where, "it holds no snapshot")
    numbers = f"{known[0].number} to {known[-1].number}" if known else "none"
    raise DataError(
        f"the index holds no snapshot {text!r:.80}",
        code="rag.no-such-snapshot",
        where=str(where.parent),
        expected=f"one that is kept: {numbers}, or the beginning of its digest",
        next="list them: stillroom rag log INDEX; older ones go when newer ones come",
    )


def damaged(path: Path, reason: str) -> IntegrityError:
    """Return the error that says which file of an index is not what was written."""
    return IntegrityError(
        f"the index is damaged: {path.name}: {reason}",
        code="rag.index-damaged",
        where=str(path),
        expected="the file that was written",
        next="stillroom rag verify INDEX --repair, or build the index again with --overwrite",
    )
