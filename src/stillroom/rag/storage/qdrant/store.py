"""Qdrant store: catalog and postings in a folder, vectors in a collection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from typing_extensions import override

from stillroom.provenance import FileEntry
from stillroom.rag.search_engines.dense import DEFAULT_OVERSAMPLING
from stillroom.rag.storage.filters import SqlCondition
from stillroom.rag.storage.folder.reader import (
    FolderReusableContent,
    FolderSnapshot,
    open_folder_snapshot,
)
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
from stillroom.rag.storage.tables import ReusedDocument
from stillroom.rag.types import StagedDocument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder

__all__ = ["QdrantIndexWriter", "QdrantReusableContent", "QdrantSnapshot", "QdrantStore"]


@dataclass(frozen=True)
class QdrantSnapshot(FolderSnapshot):
    """A snapshot with vectors in a collection."""

    points: QdrantCollection
    _views: list[QdrantVectors] = field(default_factory=list)

    @classmethod
    def from_folder(cls, opened: FolderSnapshot, points: QdrantCollection) -> Self:
        """Return a snapshot of the folder with the vectors of a collection."""
        return cls(
            opened.folder, opened.catalog, opened.snapshot, opened.lease, opened.segments, points
        )

    def open_dense(self, everyone: PassageRows, population: SqlCondition) -> QdrantVectors:  # type: ignore[override]  # another engine behind the same protocol
        """Return a vector search engine over a population."""
        measured = self.get_setting(MEASURED_RECALL)
        oversampling = measured["oversampling"] if measured else DEFAULT_OVERSAMPLING
        self._views[:] = [QdrantVectors(self.points, everyone, oversampling)]
        return self._views[0]

    def vectors_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors by positions in the population that was opened last, (N, D) float32."""
        return self._views[0].vectors_at(np.asarray(positions))

    def follow(self) -> QdrantSnapshot:
        """Return the newest snapshot, opened beside this one."""
        return QdrantSnapshot.from_folder(FolderSnapshot.follow(self), self.points)


class QdrantReusableContent(FolderReusableContent):
    """Reusable content with vectors from the collection."""

    def __init__(self, opened: FolderSnapshot, points: QdrantCollection) -> None:
        super().__init__(opened)
        self.points = points

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector of a text, by its digest, and whether the text was truncated."""
        rows = self.catalog.query(
            "SELECT key, truncated FROM passages WHERE embedded = ? ORDER BY key LIMIT 1",
            (embedded,),
        )
        if not rows:
            return None
        return self.points.fetch([int(rows[0][0])])[0], bool(rows[0][1])

    @override
    def vectors_of(self, part: ReusedDocument) -> NDArray[Any]:
        first = part.content << PASSAGE_BITS
        return self.points.fetch([first + position for position in range(part.entry.passages)])


class QdrantIndexWriter(FolderIndexWriter):
    """Writer of the folder that writes vectors as points before each commit."""

    points: QdrantCollection

    def list_files(self, root: Path) -> list[FileEntry]:
        """Return entries of all files in the catalog, and of store.json."""
        return [*super().list_files(root), build_file_entry(root, self.folder / STORE_FILE)]

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
            ResourceError: If the disk is full or the server does not answer; the index is then
                unchanged.
        """
        before = self._list_contents()
        snapshot = super().commit(change, reason=reason, keep=keep, check=check)
        self.points.remove(sorted(before - self._list_contents()))
        return snapshot

    def compact(self, *, check: Callable[[], None] = lambda: None) -> Snapshot:
        """Merge all segments, and remove points that no snapshot needs."""
        snapshot = super().compact(check=check)
        known = self._list_contents()
        self.points.remove(sorted({content for _, content, *_ in self.points.scroll()} - known))
        return snapshot

    def remove_uncommitted(self) -> None:
        """Remove the points of an uncommitted change."""
        self.points.remove_after(max(self._list_contents(), default=0))

    def _list_contents(self) -> set[int]:
        return {int(key) for (key,) in self.connection.execute("SELECT key FROM contents")}

    def _stage(self, parts: Sequence[StagedDocument], check: Callable[[], None]) -> list[int]:
        known = self._list_contents()
        contents = super()._stage(parts, check)
        for content, part in zip(contents, parts, strict=True):
            check()
            if content not in known:
                self.points.put(content, part.vectors())
        return contents

    @property
    def _dimensions(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class QdrantStore:
    """Store of an index in Qdrant; see ``stillroom.rag.storage.protocol.IndexStorage``."""

    folder: Path
    points: QdrantCollection

    def read(self, selector: int | str | None = None, *, verify: bool) -> QdrantSnapshot:
        """Open a snapshot, by default the newest; ``verify`` covers only the folder's files."""
        opened = open_folder_snapshot(self.folder, selector, verify=verify)
        return QdrantSnapshot.from_folder(opened, self.points)

    def hold(self) -> QdrantReusableContent:
        """Open the newest snapshot to reuse its content."""
        return QdrantReusableContent(open_folder_snapshot(self.folder, verify=False), self.points)

    def write(self) -> QdrantIndexWriter:
        """Open the index for writing, and remove what an interrupted writer left."""
        writer = QdrantIndexWriter.open(self.folder)
        writer.points = self.points
        try:
            writer.remove_uncommitted()
        except BaseException:
            writer.close()
            raise
        return writer

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        return FolderStore(self.folder).snapshots()

    def check(self) -> list[IntegrityIssue]:
        """Return all integrity issues, with every vector compared with its digest."""
        issues = check_folder(self.folder)
        opened = open_folder_snapshot(self.folder, verify=False)
        try:
            expected = {int(key) for (key,) in opened.catalog.query("SELECT key FROM passages")}
        finally:
            opened.close()
        present: set[int] = set()
        for key, _, digest, vector in self.points.scroll():
            present.add(key)
            if key in expected and digest_vector(vector) != digest:
                issues.append(
                    IntegrityIssue("points", f"the vector of passage {key} was changed", False)
                )
        if expected - present:
            issues.append(
                IntegrityIssue("points", f"{len(expected - present)} vectors are missing", False)
            )
        if present - expected:
            problem = f"{len(present - expected)} points have no passage"
            issues.append(IntegrityIssue("points", problem, is_derived=True))
        return issues

    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Remove points without a passage, and rebuild derived files."""
        with self.write() as writer:
            if any(issue.path == "points" for issue in issues):
                writer.compact()
            update_manifest(writer)

    def measure(self) -> StoreSize:
        """Return the size of the folder; the size of the collection is unknown."""
        return FolderStore(self.folder).measure()

    def discard(self) -> None:
        """Remove the collection."""
        self.points.drop()
