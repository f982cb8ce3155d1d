"""Qdrant store: catalog and postings in a folder, vectors in a collection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.provenance import FileEntry
from stillroom.rag.search_engines.dense import DEFAULT_OVERSAMPLING
from stillroom.rag.storage.filters import SqlCondition
from stillroom.rag.storage.folder.catalog import SegmentEntry
from stillroom.rag.storage.folder.reader import (
    FolderReusableContent,
    FolderSnapshot,
    open_folder_snapshot,
)
from stillroom.rag.storage.folder.segments import MergedSegment
from stillroom.rag.storage.folder.store import FolderStore, check_folder
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import MEASURED_RECALL, IndexUpdate, IntegrityIssue, StoreSize
from stillroom.rag.storage.qdrant.collection import QdrantCollection, QdrantVectors, digest_vector
from stillroom.rag.storage.snapshots import (
    PASSAGE_BITS,
    STORE_FILE,
    PassageRows,
    Snapshot,
    build_file_entry,
    update_manifest,
)
from stillroom.rag.types import (
    AuxiliaryVectors,
    DocumentEntry,
    EmbeddingDigest,
    StagedDocument,
    get_auxiliary_vectors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder

__all__ = ["QdrantIndexWriter", "QdrantReusableContent", "QdrantSnapshot", "QdrantStore"]


@dataclass(frozen=True, slots=True)
class _DocumentWithoutVectors:
    """A part without its vectors: what the folder's segments keep of it."""

    part: StagedDocument

    @property
    def entry(self) -> DocumentEntry:
        return self.part.entry

    def document_line(self) -> bytes:
        return self.part.document_line()

    def passage_lines(self) -> list[bytes]:
        return self.part.passage_lines()

    def marks(self) -> Sequence[EmbeddingDigest]:
        return self.part.marks()

    def extras(self) -> AuxiliaryVectors:
        return get_auxiliary_vectors(self.part)

    def vectors(self) -> NDArray[Any]:
        return np.zeros((self.part.entry.passages, 0), dtype=np.float32)


@dataclass(frozen=True)
class QdrantSnapshot(FolderSnapshot):
    """A snapshot whose vectors lie in a collection."""

    points: QdrantCollection
    _views: list[QdrantVectors] = field(default_factory=list)

    @classmethod
    def over(cls, opened: FolderSnapshot, points: QdrantCollection) -> Self:
        """Show a snapshot of the folder with the vectors of a collection."""
        return cls(
            opened.folder, opened.ledger, opened.snapshot, opened.pin, opened.segments, points
        )

    def open_dense(self, everyone: PassageRows, population: SqlCondition) -> QdrantVectors:  # type: ignore[override]  # another engine behind the same protocol
        """Return what searches the vectors of a population."""
        measured = self.recall(MEASURED_RECALL)
        chosen = measured["oversampling"] if measured else DEFAULT_OVERSAMPLING
        self._views[:] = [QdrantVectors(self.points, everyone, chosen)]
        return self._views[0]

    def vectors_at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors, (N, D) float32; of the population that was opened last."""
        return self._views[0].vectors_at(np.asarray(places))

    def follow(self) -> QdrantSnapshot:
        """Return the newest snapshot, opened beside this one."""
        return QdrantSnapshot.over(FolderSnapshot.follow(self), self.points)


class QdrantReusableContent(FolderReusableContent):
    """What the newest snapshot holds, its vectors read from the collection."""

    def __init__(self, opened: FolderSnapshot, points: QdrantCollection) -> None:
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


class QdrantIndexWriter(FolderIndexWriter):
    """The folder's writer, which writes vectors as points before it commits."""

    points: QdrantCollection

    def list_files(self, home: Path) -> list[FileEntry]:
        """Return the entries of all that the ledger names, and of store.json."""
        return [*super().list_files(home), build_file_entry(home, self.folder / STORE_FILE)]

    def commit(
        self,
        change: IndexUpdate,
        *,
        reason: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Publish a change as the next snapshot; see ``FolderIndexWriter.commit``.

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

    def _stage(self, parts: Sequence[StagedDocument], check: Callable[[], None]) -> list[int]:
        known = self._list_contents()
        contents = super()._stage([_DocumentWithoutVectors(part) for part in parts], check)
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
        merged: Sequence[MergedSegment],
        parts: Sequence[StagedDocument],
        check: Callable[[], None] = lambda: None,
    ) -> SegmentEntry:
        return super()._write_rows(
            number, merged, [_DocumentWithoutVectors(part) for part in parts], check
        )


@dataclass(frozen=True, slots=True)
class QdrantStore:
    """See ``stillroom.rag.storage.protocol.IndexStorage``."""

    folder: Path
    points: QdrantCollection

    def read(self, wanted: int | str | None = None, *, verify: bool) -> QdrantSnapshot:
        """Open a snapshot, by default the newest; ``verify`` holds the folder's files."""
        opened = open_folder_snapshot(self.folder, wanted, verify=verify)
        return QdrantSnapshot.over(opened, self.points)

    def hold(self) -> QdrantReusableContent:
        """Open the newest snapshot for taking over what it holds."""
        return QdrantReusableContent(open_folder_snapshot(self.folder, verify=False), self.points)

    def write(self) -> QdrantIndexWriter:
        """Open for writing, and clear up after a writer that was killed."""
        writer = QdrantIndexWriter.open(self.folder)
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

    def check(self) -> list[IntegrityIssue]:
        """Return everything that does not agree; every vector is held against its digest."""
        found = check_folder(self.folder)
        opened = open_folder_snapshot(self.folder, verify=False)
        try:
            wanted = {int(key) for (key,) in opened.ledger.query("SELECT key FROM passages")}
        finally:
            opened.close()
        seen: set[int] = set()
        for key, _, digest, vector in self.points.scroll():
            seen.add(key)
            if key in wanted and digest_vector(vector) != digest:
                found.append(
                    IntegrityIssue("points", f"the vector of passage {key} was changed", False)
                )
        if wanted - seen:
            found.append(
                IntegrityIssue("points", f"{len(wanted - seen)} vectors are missing", False)
            )
        if seen - wanted:
            what = f"{len(seen - wanted)} points belong to no passage"
            found.append(IntegrityIssue("points", what, is_derived=True))
        return found

    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Remove points of no passage, and make the files beside again."""
        with self.write() as writer:
            if any(one.path == "points" for one in issues):
                writer.compact()
            update_manifest(writer)

    def measure(self) -> StoreSize:
        """Return how much the folder takes; what a server takes it does not say."""
        return FolderStore(self.folder).measure()

    def discard(self) -> None:
        """Remove the collection."""
        self.points.drop()
