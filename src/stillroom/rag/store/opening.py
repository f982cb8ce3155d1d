"""Opening a snapshot for reading: pinned, with its segments mapped and its rows in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.provenance import ARTIFACT_FILE, digest_as, read_artifact
from stillroom.provenance.ledger import LEDGER
from stillroom.rag.engines.keyword_engine import KeywordEngine
from stillroom.rag.engines.sketches import (
    DEFAULT_OVERSAMPLING,
    ApproximateEngine,
    MeasuredRecall,
)
from stillroom.rag.engines.sparse_engine import SparseEngine
from stillroom.rag.engines.token_engine import TokenEngine
from stillroom.rag.engines.vectors import DenseEngine
from stillroom.rag.filters import SQLITE, Condition, Dialect
from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.locking import Pin, is_being_written, snapshot_file
from stillroom.rag.store.protocol import MEASURED
from stillroom.rag.store.rows import Rows, Table
from stillroom.rag.store.segments import Segment, open_segment
from stillroom.rag.store.snapshots import Snapshot, damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenSnapshot", "SegmentVectors", "open_snapshot"]

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
    def where(self) -> Path:
        """What errors name: the ledger."""
        return self.ledger.path

    @property
    def description(self) -> Mapping[str, Any]:
        """What shaped the index."""
        return self.ledger.description

    @property
    def dialect(self) -> Dialect:
        """How conditions are written."""
        return SQLITE

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

    def load(self, condition: Condition, within: Table | None = None) -> Table:
        """Return the documents that meet a condition, in order of path.

        Raises:
            IntegrityError: If a document lies in no segment.
        """
        found = self.ledger.load(self.snapshot.number, condition.sql, dict(condition.values))
        keys, contents, counts, segments, starts = (np.ascontiguousarray(one) for one in found)
        return Table(keys, contents, counts, starts + _look_up(segments, self))

    def list_fields(self, condition: Condition) -> Sequence[tuple[str, str]]:
        """Return name and kind of every field of documents that meet a condition."""
        return self.ledger.list_fields(self.snapshot.number, condition.sql, dict(condition.values))

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values that documents have of a field, each with its document's key."""
        return self.ledger.list_values(name, keys)

    def open_keywords(self, everyone: Rows, population: Condition) -> KeywordEngine:
        """Return what searches the words of a population."""
        return KeywordEngine([one.postings for one in self.segments], everyone.mask)

    def open_dense(self, everyone: Rows, population: Condition) -> SegmentVectors:
        """Return what searches the vectors of a population."""
        parts = [one.vectors for one in self.segments]
        codes = [one.codes for one in self.segments]
        exact = DenseEngine(parts, everyone.mask, codes=codes)
        measured = self.recall(MEASURED)
        near = ApproximateEngine(
            exact,
            sketches=[one.sketches for one in self.segments],
            oversampling=measured["oversampling"] if measured else DEFAULT_OVERSAMPLING,
        )
        return SegmentVectors(exact, near)

    def open_sparse(self, everyone: Rows) -> SparseEngine | None:
        """Return what searches the term weights of a population, None where there are none."""
        parts = [one.extras.weights for one in self.segments]
        held = [part for part in parts if part is not None]
        return SparseEngine(held, everyone.mask) if held and len(held) == len(parts) else None

    def open_tokens(self, everyone: Rows) -> TokenEngine | None:
        """Return what searches the token vectors of a population, None where there are none."""
        parts = [one.extras.tokens for one in self.segments]
        held = [part for part in parts if part is not None]
        return TokenEngine(held, everyone.mask) if held and len(held) == len(parts) else None

    def recall(self, name: str) -> Any:
        """Return what was measured under a name, or None."""
        return self.ledger.recall(name)

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

    def is_newest(self) -> bool:
        """Return whether no newer snapshot was committed."""
        return self.ledger.find_snapshot().number == self.snapshot.number

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

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its place from 0."""
        return self.ledger.passage(content, position)

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the position of a passage, or None."""
        return self.ledger.locate_passage(passage_id)

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""
        return self.ledger.document(content)

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None."""
        return self.ledger.locate_document(document_id)

    def close(self) -> None:
        """Let the snapshot go."""
        self.ledger.close()
        self.pin.release()


@dataclass(frozen=True, slots=True)
class SegmentVectors:
    """Searches the vectors of segments; by masks, which conditions have become."""

    exact: DenseEngine
    near: ApproximateEngine

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: Condition,
        is_near: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the best ``k`` places and their scores, best first."""
        engine = self.near if is_near else self.exact
        return engine.search(vector, k, mask=mask)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure what sketches find of the best ``k``, and search so from here."""
        return self.near.calibrate(queries, k=k, least=least)


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
        size, digest = before.st_size, digest_as(path, told[1])
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
