"""Opening a snapshot for reading: pinned, with its segments mapped and its rows in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import ARTIFACT_FILE, digest_file, read_artifact
from stillroom.provenance.ledger import LEDGER
from stillroom.rag.store.ledger import Ledger, Snapshot, Table, damaged
from stillroom.rag.store.locking import Pin, is_being_written, snapshot_file
from stillroom.rag.store.segments import Segment, open_segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenSnapshot", "Rows", "open_snapshot"]

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class OpenSnapshot:
    """A snapshot that stays while it is open, and the segments that it reads."""

    folder: Path
    ledger: Ledger
    snapshot: Snapshot
    pin: Pin
    segments: tuple[Segment, ...]

    @property
    def offsets(self) -> dict[int, int]:
        """The first row of each segment, by its number, when they lie one after another."""
        offsets, first = {}, 0
        for segment in self.segments:
            offsets[segment.number] = first
            first += len(segment.vectors)
        return offsets

    @property
    def size(self) -> int:
        """How many rows the segments have, those that no document needs included."""
        return sum(len(segment.vectors) for segment in self.segments)

    def vectors_at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of the segments' rows, put one after another, (N, D) float32."""
        width = self.segments[0].vectors.shape[1] if self.segments else 0
        found = np.empty((len(places), width), dtype=np.float32)
        for segment, first in zip(self.segments, self.offsets.values(), strict=True):
            own = (places >= first) & (places < first + len(segment.vectors))
            found[own] = segment.vectors[places[own] - first]
        return found

    def list_deleted(self, newer: OpenSnapshot) -> list[int] | None:
        """Return the documents that ended since this snapshot, if that is all that happened."""
        if [one.number for one in self.segments] != [one.number for one in newer.segments]:
            return None
        return self.ledger.list_deleted(self.snapshot.number, newer.snapshot.number)

    def follow(self) -> OpenSnapshot:
        """Return the newest snapshot, opened beside this one; open segments are shared.

        Raises:
            IntegrityError: If a new file is missing or half-written.
        """
        pin, snapshot = _pin_snapshot(self.folder, self.ledger, None)
        try:
            known = {segment.number: segment for segment in self.segments}
            segments = tuple(
                known.get(entry.number) or open_segment(self.folder, entry, verify=False)
                for entry in self.ledger.segments(snapshot.number)
            )
        except BaseException:
            pin.release()
            raise
        return OpenSnapshot(self.folder, self.ledger, snapshot, pin, segments)

    def close(self) -> None:
        """Let the snapshot go."""
        self.ledger.close()
        self.pin.release()


class Rows:
    """The passages of a view in order: documents by path, passages by position.

    A row is a number from 0 in that order. The segments know other rows, as they were written:
    ``places`` (N,) gives the segments' row of each row, ``rows`` (P,) the reverse, -1 where the
    view sees no passage.
    """

    def __init__(self, table: Table, opened: OpenSnapshot) -> None:
        """Order the passages of a table's documents.

        Raises:
            IntegrityError: If a document lies in no segment, or two in one place.
        """
        self.table = table
        self.firsts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(table.counts)])
        count = int(self.firsts[-1])
        starts = table.starts + _look_up(table.segments, opened)
        steps = np.arange(count) - np.repeat(self.firsts[:-1], table.counts)
        self.places: NDArray[np.int64] = np.repeat(starts, table.counts) + steps
        self.rows: NDArray[np.int64] = np.full(opened.size, -1, dtype=np.int64)
        if count and int(self.places.max()) >= opened.size:
            raise damaged(opened.ledger.path, "a document lies beyond its segment")
        self.rows[self.places] = np.arange(count)
        if int((self.rows >= 0).sum()) != count:
            raise damaged(opened.ledger.path, "two documents lie in one place")
        self._order = np.argsort(table.contents, kind="stable")

    def __len__(self) -> int:
        """Return how many passages the view sees."""
        return int(self.firsts[-1])

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which of the segments' rows the view sees, (P,)."""
        return self.rows >= 0

    def locate(self, row: int) -> tuple[int, int]:
        """Return the key of a row's content, and the passage's position in it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        at = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return int(self.table.contents[at]), row - int(self.firsts[at])

    def find(self, content: int, position: int = 0) -> int | None:
        """Return the row of a content's passage, or None where the view does not see it."""
        if not len(self._order):
            return None
        at = int(np.searchsorted(self.table.contents, content, sorter=self._order))
        if at == len(self._order):
            return None
        document = int(self._order[at])
        if int(self.table.contents[document]) != content:
            return None
        return int(self.firsts[document]) + position


def open_snapshot(folder: Path, wanted: int | str | None = None, *, verify: bool) -> OpenSnapshot:
    """Open the index in ``folder`` as a snapshot of it, by default the newest.

    Args:
        folder: The index's.
        wanted: A snapshot's number, or the beginning of its digest.
        verify: Recompute the files' digests; otherwise only sizes are compared.

    Raises:
        DataError: If there is no such snapshot, or none any more.
        IntegrityError: If a file is missing, half-written or changed.
    """
    ledger = Ledger(folder)
    pin: Pin | None = None
    try:
        pin, snapshot = _pin_snapshot(folder, ledger, wanted)
        if verify:
            _check_ledger(folder, ledger.find_snapshot())
        segments = tuple(
            open_segment(folder, entry, verify=verify) for entry in ledger.segments(snapshot.number)
        )
    except BaseException:
        ledger.close()
        if pin is not None:
            pin.release()
        raise
    return OpenSnapshot(folder, ledger, snapshot, pin, segments)


def _pin_snapshot(folder: Path, ledger: Ledger, wanted: int | str | None) -> tuple[Pin, Snapshot]:
    """Return a pinned snapshot; one that goes meanwhile is looked for again."""
    for _ in range(_ATTEMPTS):
        snapshot = ledger.find_snapshot(wanted)
        pin = Pin.take(folder, snapshot.number)
        if pin is None:
            continue
        if any(known.number == snapshot.number for known in ledger.snapshots()):
            return pin, snapshot
        pin.release()
    raise damaged(snapshot_file(folder, snapshot.number), "it is missing")


def _look_up(segments: NDArray[np.int64], opened: OpenSnapshot) -> NDArray[np.int64]:
    """Return each document's segment's first row."""
    known = opened.offsets
    missing = set(segments.tolist()) - known.keys()
    if missing:
        raise damaged(opened.ledger.path, f"it names segments that are not there: {missing}")
    numbers = sorted(known)
    if not numbers:
        return np.zeros(0, dtype=np.int64)
    firsts = np.array([known[number] for number in numbers], dtype=np.int64)
    found: NDArray[np.int64] = firsts[np.searchsorted(np.array(numbers), segments)]
    return found


def _check_ledger(folder: Path, snapshot: Snapshot) -> None:
    """Hold the ledger's bytes against artifact.json, where that speaks of this very state.

    It does not where a writer is at work or was killed, nor for a folder without artifact.json:
    then SQLite's own checks have to do.
    """
    path = folder / LEDGER
    for _ in range(_ATTEMPTS):
        told = _recorded(folder, snapshot)
        if told is None:
            return
        before = path.stat()
        size, digest = before.st_size, digest_file(path)
        if (size, digest) == told:
            return
        after = path.stat()
        is_still = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if is_still and _recorded(folder, snapshot) == told and not is_being_written(folder):
            break
    else:
        return
    if path.with_name(f"{LEDGER}-journal").exists() or _is_staged(folder):
        return
    if size != told[0]:
        raise damaged(path, f"it has {size} bytes instead of {told[0]}")
    raise damaged(path, "its bytes are not those that were written")


def _recorded(folder: Path, snapshot: Snapshot) -> tuple[int, str] | None:
    """Return what artifact.json says of the ledger at this snapshot, the newest there is."""
    if not (folder.parent / ARTIFACT_FILE).is_file():
        return None
    try:
        artifact = read_artifact(folder.parent)
        if artifact.details.get("snapshot") != snapshot.number:
            return None
        entries = (*artifact.files, *artifact.timed_files)
        found = [entry for entry in entries if entry.path == f"{folder.name}/{LEDGER}"]
        return (found[0].size_bytes, found[0].digest) if found else None
    except DataError:
        return None


def _is_staged(folder: Path) -> bool:
    """Return whether a writer was killed while it staged passages."""
    ledger = Ledger(folder)
    try:
        return bool(ledger.query("SELECT 1 FROM settings WHERE name = 'staged'"))
    finally:
        ledger.close()
