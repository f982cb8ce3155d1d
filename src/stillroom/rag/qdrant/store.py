"""QdrantStore: a folder's ledger and postings, and a collection of Qdrant for the vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.provenance import FileEntry
from stillroom.rag.engines.sketches import DEFAULT_OVERSAMPLING
from stillroom.rag.filters import Condition
from stillroom.rag.qdrant.points import Points, digest_vector
from stillroom.rag.qdrant.vectors import QdrantVectors
from stillroom.rag.store.checking import Damage, check_folder
from stillroom.rag.store.extras import Extras, extras_of
from stillroom.rag.store.folder_store import FolderStore
from stillroom.rag.store.ledger import SegmentEntry
from stillroom.rag.store.manifest import entry_of, renew_manifest
from stillroom.rag.store.opening import OpenSnapshot, open_snapshot
from stillroom.rag.store.parts import Entry, Mark, Part
from stillroom.rag.store.protocol import MEASURED, StoreSize
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.recalled import Held
from stillroom.rag.store.rows import Rows
from stillroom.rag.store.schema import PASSAGE_BITS
from stillroom.rag.store.segments import Merged
from stillroom.rag.store.snapshots import Snapshot
from stillroom.rag.store.writer import Writer
from stillroom.rag.storing import STORE_FILE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder

__all__ = ["QdrantHeld", "QdrantReading", "QdrantStore", "QdrantWriter"]


@dataclass(frozen=True, slots=True)
class _Wordy:
    """A part without its vectors: what the folder's segments keep of it."""

    part: Part

    @property
    def entry(self) -> Entry:
        return self.part.entry

    def document_line(self) -> bytes:
        return self.part.document_line()

    def passage_lines(self) -> list[bytes]:
        return self.part.passage_lines()

    def marks(self) -> Sequence[Mark]:
        return self.part.marks()

    def extras(self) -> Extras:
        return extras_of(self.part)

    def vectors(self) -> NDArray[Any]:
        return np.zeros((self.part.entry.passages, 0), dtype=np.float32)


@dataclass(frozen=True)
class QdrantReading(OpenSnapshot):
    """A snapshot whose vectors lie in a collection."""

    points: Points
    _views: list[QdrantVectors] = field(default_factory=list)

    @classmethod
    def over(cls, opened: OpenSnapshot, points: Points) -> Self:
        """Show a snapshot of the folder with the vectors of a collection."""
        return cls(
            opened.folder, opened.ledger, opened.snapshot, opened.pin, opened.segments, points
        )

    def open_dense(self, everyone: Rows, population: Condition) -> QdrantVectors:  # type: ignore[override]  # another engine behind the same protocol
        """Return what searches the vectors of a population."""
        measured = self.recall(MEASURED)
        chosen = measured["oversampling"] if measured else DEFAULT_OVERSAMPLING
        self._views[:] = [QdrantVectors(self.points, everyone, chosen)]
        return self._views[0]

    def vectors_at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors, (N, D) float32; of the population that was opened last."""
        return self._views[0].vectors_at(np.asarray(places))

    def follow(self) -> QdrantReading:
        """Return the newest snapshot, opened beside this one."""
        return QdrantReading.over(OpenSnapshot.follow(self), self.points)


class QdrantHeld(Held):
    """What the newest snapshot holds, its vectors read from the collection."""

    def __init__(self, opened: OpenSnapshot, points: Points) -> None:
        """Read an open snapshot, the newest."""
        super().__init__(opened)
        self.points = points

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector made of a text, by its digest, and whether the text was cut."""
        rows = self.ledger.query(
            "SELECT key, truncated FROM passages WHERE embedded = ? ORDER BY key LIMIT 1",
            (embedded,),
        )
        if not rows:
            return None
        return self.points.fetch([int(rows[0][0])])[0], bool(rows[0][1])

    def vectors_of(self, content: int, count: int) -> NDArray[Any]:
        """Return the vectors of a content's passages, (N, D)."""
        return self.points.fetch([(content << PASSAGE_BITS) + at for at in range(count)])


class QdrantWriter(Writer):
    """The folder's writer, which writes vectors as points before it commits."""

    points: Points

    def list_files(self, home: Path) -> list[FileEntry]:
        """Return the entries of all that the ledger names, and of store.json."""
        return [*super().list_files(home), entry_of(home, self.folder / STORE_FILE)]

    def commit(
        self,
        change: Change,
        *,
        reason: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Publish a change as the next snapshot; see ``Writer.commit``.

        Raises:
            ResourceError: If the disk is full or the server does not answer; the index is then as
                it was.
        """
        before = self._list_contents()
        snapshot = super().commit(change, reason=reason, keep=keep, check=check)
        self.points.remove(sorted(before - self._list_contents()))
        return snapshot

    def compact(self, *, check: Callable[[], None] = lambda: None) -> Snapshot:
        """Merge all segments, and remove every point that no snapshot needs."""
        snapshot = super().compact(check=check)
        known = self._list_contents()
        self.points.remove(sorted({content for _, content, *_ in self.points.scroll()} - known))
        return snapshot

    def clear_up(self) -> None:
        """Remove the points of a change that was never committed."""
        self.points.remove_after(max(self._list_contents(), default=0))

    def _list_contents(self) -> set[int]:
        return {int(key) for (key,) in self.connection.execute("SELECT key FROM contents")}

    def _stage(self, parts: Sequence[Part], check: Callable[[], None]) -> list[int]:
        known = self._list_contents()
        contents = super()._stage([_Wordy(part) for part in parts], check)
        for content, part in zip(contents, parts, strict=True):
            check()
            if content not in known:
                self.points.put(content, part.vectors())
        return contents

    @property
    def _dimensions(self) -> int:
        return 0

    def _write_rows(
        self,
        number: int,
        merged: Sequence[Merged],
        parts: Sequence[Part],
        check: Callable[[], None] = lambda: None,
    ) -> SegmentEntry:
        return super()._write_rows(number, merged, [_Wordy(part) for part in parts], check)


@dataclass(frozen=True, slots=True)
class QdrantStore:
    """See ``stillroom.rag.store.protocol.Store``."""

    folder: Path
    points: Points

    def read(self, wanted: int | str | None = None, *, verify: bool) -> QdrantReading:
        """Open a snapshot, by default the newest; ``verify`` holds the folder's files."""
        opened = open_snapshot(self.folder, wanted, verify=verify)
        return QdrantReading.over(opened, self.points)

    def hold(self) -> QdrantHeld:
        """Open the newest snapshot for taking over what it holds."""
        return QdrantHeld(open_snapshot(self.folder, verify=False), self.points)

    def write(self) -> QdrantWriter:
        """Open for writing, and clear up after a writer that was killed."""
        writer = QdrantWriter.open(self.folder)
        writer.points = self.points
        try:
            writer.clear_up()
        except BaseException:
            writer.close()
            raise
        return writer

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""
        return FolderStore(self.folder).snapshots()

    def check(self) -> list[Damage]:
        """Return everything that does not agree; every vector is held against its digest."""
        found = check_folder(self.folder)
        opened = open_snapshot(self.folder, verify=False)
        try:
            wanted = {int(key) for (key,) in opened.ledger.query("SELECT key FROM passages")}
        finally:
            opened.close()
        seen: set[int] = set()
        for key, _, digest, vector in self.points.scroll():
            seen.add(key)
            if key in wanted and digest_vector(vector) != digest:
                found.append(Damage("points", f"the vector of passage {key} was changed", False))
        if wanted - seen:
            found.append(Damage("points", f"{len(wanted - seen)} vectors are missing", False))
        if seen - wanted:
            what = f"{len(seen - wanted)} points belong to no passage"
            found.append(Damage("points", what, is_derived=True))
        return found

    def repair(self, found: Sequence[Damage], embedder: Embedder | None) -> None:
        """Remove points of no passage, and make the files beside again."""
        with self.write() as writer:
            if any(one.path == "points" for one in found):
                writer.compact()
            renew_manifest(writer)

    def measure(self) -> StoreSize:
        """Return how much the folder takes; what a server takes it does not say."""
        return FolderStore(self.folder).measure()

    def discard(self) -> None:
        """Remove the collection."""
        self.points.drop()
