"""Index writer of a folder, and removal of unneeded data.

Order of a commit: parsed documents and passages are staged in the catalog, where no snapshot shows
them; a segment of the new rows is written, synced and renamed; the file of the new snapshot is
written; one transaction publishes all of it; then that file is synced. If the writer is killed
before the commit, the next writer removes its leftovers; if after it, the next writer renews
derived files (index.json, artifact.json, after a power failure the snapshot's file). Data of
snapshots that are not kept are removed once no reader holds one of them.

Deleted rows are overwritten in the file (SQLite's ``secure_delete``): a deleted document's text is
no longer on disk once no kept snapshot shows it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import FileEntry, digest_large_file
from stillroom.provenance.sources import LEDGER
from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.storage.folder.catalog import (
    SNAPSHOTS,
    Catalog,
    CatalogTables,
    SegmentEntry,
    SnapshotLease,
    WriterLock,
    create_catalog,
    get_snapshot_file,
    open_catalog,
    sync_snapshot_file,
    write_snapshot_file,
)
from stillroom.rag.storage.folder.commit import (
    SnapshotCommit,
    choose_merged_segments,
    open_transaction,
    stage_documents,
)
from stillroom.rag.storage.folder.segments import (
    MergedSegment,
    get_segment_folder,
    list_segment_folders,
    write_segment,
)
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import (
    PASSAGE_BITS,
    IndexConfig,
    SegmentLayout,
    Snapshot,
    build_file_entry,
    make_damage_error,
    open_analyzer,
)
from stillroom.rag.types import StagedDocument

__all__ = ["DEFAULT_KEPT_SNAPSHOTS", "FolderIndexWriter"]


DEFAULT_KEPT_SNAPSHOTS = 16
"""Number of snapshots that are kept, the newest included."""


class FolderIndexWriter(CatalogTables):
    """Writer of an index; use ``create`` or ``open``, ``commit`` and ``close``."""

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, lock: WriterLock | None
    ) -> None:
        self.folder = folder
        self.connection = connection
        self._lock = lock
        self.catalog = Catalog(folder)
        self.description = self.catalog.description

    @classmethod
    def create(cls, folder: Path, description: Mapping[str, Any]) -> Self:
        """Create an empty index in a folder that no reader uses yet.

        Files of an earlier attempt are replaced.
        """
        folder.mkdir(parents=True, exist_ok=True)
        connection = create_catalog(folder / LEDGER)
        connection.execute(
            "INSERT INTO settings VALUES ('description', ?)", (json.dumps(description),)
        )
        _remove_orphans(folder, connection)
        return cls(folder, connection, None)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an index for writing, and remove what an interrupted writer left.

        Raises:
            ResourceError: If another process writes it, or the disk is read-only.
            IntegrityError: If it is damaged.
        """
        Catalog(folder).close()
        lock = WriterLock(folder)
        try:
            connection = open_catalog(folder / LEDGER)
            with open_transaction(connection):
                _remove_staged(connection)
            _remove_orphans(folder, connection)
            _restore_snapshot_files(folder, connection)
            return cls(folder, connection, lock)
        except sqlite3.Error as error:
            lock.release()
            raise make_damage_error(folder / LEDGER, str(error)) from error
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def list_files(self, root: Path) -> list[FileEntry]:
        """Return entries of all files in the catalog; digests of segments are taken from it."""
        catalog = self.folder / LEDGER
        name, size = catalog.relative_to(root).as_posix(), catalog.stat().st_size
        entries = [FileEntry(name, size, digest_large_file(catalog))]
        for number, files in self.catalog.query("SELECT number, files FROM segments"):
            segment_path = get_segment_folder(self.folder, number).relative_to(root).as_posix()
            entries += [
                FileEntry(f"{segment_path}/{name}", int(size), str(digest))
                for name, (size, digest) in json.loads(files).items()
            ]
        newest = self.find_snapshot().number
        entries += [
            build_file_entry(root, get_snapshot_file(self.folder, known.number))
            for known in self.snapshots()
            if known.number <= newest
        ]
        return entries

    @property
    def analyzer(self) -> Analyzer:
        """Analyzer of the index.

        Raises:
            IntegrityError: If the installed version gives other terms than the index has.
        """
        return open_analyzer(IndexConfig.from_json(self.description), self.folder)

    def commit(
        self,
        change: IndexUpdate,
        *,
        reason: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Publish a change as the next snapshot.

        Raises:
            ResourceError: If the disk is full; the index is then unchanged.
        """
        before = self._latest()
        number = before + 1
        publication = SnapshotCommit(self.connection, change, number)
        with full_disk_as_error(self.folder):
            contents = stage_documents(self.connection, change.parts, check, self.catalog.path)
            new_parts = [part for part, _ in change.puts]
            merged: list[MergedSegment] = []
            entry: SegmentEntry | None = None
            if new_parts:
                rows = sum(part.entry.passages for part in new_parts)
                merged = choose_merged_segments(
                    self.folder, self.catalog, publication.list_expired(), rows
                )
                entry = self._write_rows(number, merged, new_parts, check)
            check()
            with open_transaction(self.connection):
                digest = publication.publish(contents, entry, merged, self.description, reason)
                write_snapshot_file(self.folder, number, digest, is_synced=False)
            sync_snapshot_file(self.folder, number)
            _remove_unneeded(self.folder, self.connection, number, keep)
        return self.catalog.find_snapshot(number)

    def compact(self) -> Snapshot:
        """Merge all segments into one, and remove older snapshots without readers.

        Raises:
            ResourceError: If the disk is full; the index is then unchanged.
        """
        number = self._latest() + 1
        publication = SnapshotCommit(self.connection, IndexUpdate(), number)
        with full_disk_as_error(self.folder):
            merged = choose_merged_segments(self.folder, self.catalog, set(), 0, most=1)
            entry = self._write_rows(number, merged, [], lambda: None) if merged else None
            with open_transaction(self.connection):
                digest = publication.publish([], entry, merged, self.description, "compacted")
                write_snapshot_file(self.folder, number, digest, is_synced=False)
            sync_snapshot_file(self.folder, number)
            oldest = _remove_unneeded(self.folder, self.connection, number, 1)
            if oldest == number:
                self.connection.execute("VACUUM")
        return self.catalog.find_snapshot(number)

    def close(self) -> None:
        """Close the catalog and release the lock."""
        self.catalog.close()
        self.connection.close()
        if self._lock is not None:
            self._lock.release()

    def _latest(self) -> int:
        number = self.connection.execute("SELECT max(number) FROM snapshots").fetchone()[0]
        return int(number or 0)

    def set_setting(self, name: str, value: Any) -> None:
        """Store a setting as JSON, outside the snapshots; see ``get_setting``.

        It is not part of the index's content or of any digest.
        """
        with open_transaction(self.connection):
            self.connection.execute(
                "INSERT OR REPLACE INTO settings VALUES (?, ?)",
                (f"measured {name}", json.dumps(value)),
            )

    def _count_rows(self, parts: Sequence[StagedDocument]) -> int:
        """Return an estimate of the number of passages after the change."""
        known = self.catalog.snapshots()
        count = known[-1].passages if known else 0
        return count + sum(part.entry.passages for part in parts)

    def _write_rows(
        self,
        number: int,
        merged: Sequence[MergedSegment],
        parts: Sequence[StagedDocument],
        check: Callable[[], None],
    ) -> SegmentEntry:
        """Write a segment that no snapshot refers to yet."""
        return write_segment(
            self.folder,
            number,
            merged,
            parts,
            analyzer=self.analyzer if parts else None,
            dimensions=int(self.description["embedder"]["dimensions"]),
            dtype=str(self.description["settings"]["vectors"]),
            structures=SegmentLayout.of(self.description["settings"], self._count_rows(parts)),
            check=check,
        )


_PURGE = (
    "DELETE FROM placements WHERE died <= :oldest",
    "DELETE FROM placements WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM labels WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM fields WHERE document IN (SELECT key FROM documents WHERE died <= :oldest)",
    "DELETE FROM documents WHERE died <= :oldest",
    "DELETE FROM failures WHERE died <= :oldest",
    "DELETE FROM segments WHERE died <= :oldest",
    "DELETE FROM snapshots WHERE number < :oldest",
)


def _remove_staged(connection: sqlite3.Connection) -> None:
    """Remove documents and passages that an interrupted writer staged; in a transaction."""
    staged = connection.execute("SELECT value FROM settings WHERE name = 'staged'").fetchone()
    if staged is None:
        return
    top = int(staged[0])
    connection.execute("DELETE FROM passages WHERE key >= ?", ((top + 1) << PASSAGE_BITS,))
    connection.execute("DELETE FROM contents WHERE key > ?", (top,))
    connection.execute("DELETE FROM settings WHERE name = 'staged'")


def _remove_orphans(folder: Path, connection: sqlite3.Connection) -> None:
    """Remove segments and snapshot files that are not in the catalog."""
    known_paths = {
        get_segment_folder(folder, number)
        for (number,) in connection.execute("SELECT number FROM segments")
    }
    known_paths |= {
        get_snapshot_file(folder, number)
        for (number,) in connection.execute("SELECT number FROM snapshots")
    }
    snapshot_folder = folder / SNAPSHOTS
    files = sorted(snapshot_folder.iterdir()) if snapshot_folder.is_dir() else []
    for path in [*list_segment_folders(folder), *files]:
        if path not in known_paths:
            _remove(path)


def _restore_snapshot_files(folder: Path, connection: sqlite3.Connection) -> None:
    """Rewrite snapshot files that were lost by a power failure after their commit."""
    for number, digest in connection.execute("SELECT number, digest FROM snapshots").fetchall():
        path = get_snapshot_file(folder, number)
        if not path.is_file() or not path.stat().st_size:
            write_snapshot_file(folder, number, digest)


def _remove_unneeded(folder: Path, connection: sqlite3.Connection, newest: int, keep: int) -> int:
    """Remove the data of snapshots that are not kept; return the oldest remaining number.

    A snapshot with a reader is kept, and all newer ones. ``connection`` has no transaction; at
    least one snapshot is kept.
    """
    known = [n for (n,) in connection.execute("SELECT number FROM snapshots ORDER BY number")]
    leases: list[SnapshotLease] = []
    oldest = newest
    try:
        for number in known:
            oldest = number
            if number > newest - keep:
                break
            lease = SnapshotLease.take(folder, number, exclusive=True)
            if lease is None and get_snapshot_file(folder, number).exists():
                break
            leases.extend([lease] if lease is not None else [])
        if oldest != known[0]:
            _purge(folder, connection, oldest)
    finally:
        for lease in leases:
            lease.release()
    return oldest


def _purge(folder: Path, connection: sqlite3.Connection, oldest: int) -> None:
    values = {"oldest": oldest}
    expired_segments = connection.execute(
        "SELECT number FROM segments WHERE died <= :oldest", values
    )
    folders = [get_segment_folder(folder, number) for (number,) in expired_segments]
    expired_snapshots = connection.execute(
        "SELECT number FROM snapshots WHERE number < :oldest", values
    )
    files = [get_snapshot_file(folder, number) for (number,) in expired_snapshots]
    connection.execute("PRAGMA secure_delete=ON")
    with open_transaction(connection):
        contents = connection.execute(
            "SELECT content FROM documents a WHERE died <= :oldest AND NOT EXISTS ("
            "SELECT 1 FROM documents b WHERE b.content = a.content AND b.died > :oldest)",
            values,
        ).fetchall()
        for (key,) in {*contents}:
            span = (key << PASSAGE_BITS, (key + 1) << PASSAGE_BITS)
            connection.execute("DELETE FROM passages WHERE key >= ? AND key < ?", span)
            connection.execute("DELETE FROM contents WHERE key = ?", (key,))
        for sql in _PURGE:
            connection.execute(sql, values)
    for path in [*folders, *files]:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
