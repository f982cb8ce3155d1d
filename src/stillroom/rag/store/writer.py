"""Writer: changes an index from one snapshot to the next, at one commit point.

Order of a change: passages and parsed documents are staged in the ledger, where no snapshot shows
them; a segment of the new rows is written, synced and renamed; the file of the new snapshot is
written; one transaction publishes all of it; then that file is forced to disk. A kill before the
commit leaves what the next writer removes; a kill after it leaves derived files (index.json,
artifact.json, after a power failure the snapshot's) that the next writer renews. What is needed by
snapshots alone that are no longer kept goes when no reader pins one of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stillroom.jobs.files import full_disk_as_error
from stillroom.provenance import FileEntry, digest_large_file
from stillroom.provenance.ledger import LEDGER
from stillroom.rag.analyzer import Analyzer
from stillroom.rag.store.description import Description, open_analyzer
from stillroom.rag.store.ledger import Ledger, SegmentEntry
from stillroom.rag.store.locking import (
    WriterLock,
    place_snapshot_file,
    snapshot_file,
    sync_snapshot_file,
)
from stillroom.rag.store.manifest import entry_of
from stillroom.rag.store.merging import choose_merged
from stillroom.rag.store.parts import Facts, Part
from stillroom.rag.store.protocol import Told
from stillroom.rag.store.publishing import Change, Publication
from stillroom.rag.store.purging import (
    remove_orphans,
    remove_staged,
    remove_unneeded,
    restore_snapshot_files,
)
from stillroom.rag.store.schema import FOREVER, create_ledger, open_ledger
from stillroom.rag.store.segments import Merged, segment_folder, write_segment
from stillroom.rag.store.snapshots import Snapshot, damaged
from stillroom.rag.store.staging import stage_parts, transaction
from stillroom.rag.store.structures import Structures

__all__ = ["KEPT_SNAPSHOTS", "Writer"]

KEPT_SNAPSHOTS = 16
"""How many snapshots stay open to questions, the newest included."""


class Writer:
    """Changes an index; use ``create`` or ``open``, ``commit`` and ``close``."""

    def __init__(
        self, folder: Path, connection: sqlite3.Connection, lock: WriterLock | None
    ) -> None:
        """Stand over an open ledger; callers use ``create`` or ``open``."""
        self.folder = folder
        self.connection = connection
        self._lock = lock
        self.ledger = Ledger(folder)
        self.description = self.ledger.description

    @classmethod
    def create(cls, folder: Path, description: Mapping[str, Any]) -> Self:
        """Make an empty index in a folder that nobody else knows of yet.

        Args:
            folder: Where; what an earlier try left there is replaced.
            description: Settings, embedder and analyzer; part of the digest of every snapshot.
        """
        folder.mkdir(parents=True, exist_ok=True)
        connection = create_ledger(folder / LEDGER)
        connection.execute(
            "INSERT INTO settings VALUES ('description', ?)", (json.dumps(description),)
        )
        remove_orphans(folder, connection)
        return cls(folder, connection, None)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an index for writing, and clear up after a writer that was killed.

        Raises:
            ResourceError: If another process writes it, or the disk cannot be written.
            IntegrityError: If it is damaged.
        """
        Ledger(folder).close()
        lock = WriterLock(folder)
        try:
            connection = open_ledger(folder / LEDGER)
            with transaction(connection):
                remove_staged(connection)
            remove_orphans(folder, connection)
            restore_snapshot_files(folder, connection)
            return cls(folder, connection, lock)
        except sqlite3.Error as error:
            lock.release()
            raise damaged(folder / LEDGER, str(error)) from error
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the writer."""
        self.close()

    def list_documents(self) -> dict[str, Told]:
        """Return what the newest snapshot says of every document, by path, in order."""
        rows = self.ledger.query(
            "SELECT d.path, d.key, c.digest, d.fields, d.tenant, d.labels FROM documents d "
            "JOIN contents c ON c.key = d.content WHERE d.died = ? ORDER BY d.path",
            (FOREVER,),
        )
        return {
            path: Told(
                int(key),
                str(digest),
                Facts(json.loads(fields), tenant, tuple(json.loads(labels))),
            )
            for path, key, digest, fields, tenant, labels in rows
        }

    def list_keys(self) -> dict[str, int]:
        """Return the key of every document of the newest snapshot, by path, in order."""
        rows = self.ledger.query(
            "SELECT path, key FROM documents WHERE died = ? ORDER BY path", (FOREVER,)
        )
        return {path: int(key) for path, key in rows}

    def list_failures(self) -> list[tuple[str, str, str]]:
        """Return path, code and reason of every file that could not be used, in order."""
        return self.ledger.query(
            "SELECT path, code, reason FROM failures WHERE died = ? ORDER BY path", (FOREVER,)
        )

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""
        return self.ledger.snapshots()

    def find_snapshot(self, wanted: int | str | None = None) -> Snapshot:
        """Return a snapshot by number or digest, by default the newest.

        Raises:
            DataError: If there is none, or none any more.
        """
        return self.ledger.find_snapshot(wanted)

    def list_files(self, home: Path) -> list[FileEntry]:
        """Return the entries of all that the ledger names; a segment's digests it knows itself."""
        ledger = self.folder / LEDGER
        name, size = ledger.relative_to(home).as_posix(), ledger.stat().st_size
        entries = [FileEntry(name, size, digest_large_file(ledger))]
        for number, files in self.ledger.query("SELECT number, files FROM segments"):
            place = segment_folder(self.folder, number).relative_to(home).as_posix()
            entries += [
                FileEntry(f"{place}/{name}", int(size), str(digest))
                for name, (size, digest) in json.loads(files).items()
            ]
        newest = self.find_snapshot().number
        entries += [
            entry_of(home, snapshot_file(self.folder, known.number))
            for known in self.snapshots()
            if known.number <= newest
        ]
        return entries

    @property
    def analyzer(self) -> Analyzer:
        """What cuts texts into terms.

        Raises:
            IntegrityError: If the installed one gives other terms than the index has.
        """
        return open_analyzer(Description.from_json(self.description), self.folder)

    def commit(
        self,
        change: Change,
        *,
        reason: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Publish a change as the next snapshot.

        Args:
            change: What to do; an empty one still makes a snapshot.
            reason: What the snapshot's line in the log says.
            keep: How many snapshots stay, the new one included; 1 or more.
            check: Called where the change can still be given up; raises to stop.

        Raises:
            ResourceError: If the disk is full; the index is then as it was.
        """
        before = self._latest()
        number = before + 1
        publication = Publication(self.connection, change, number)
        with full_disk_as_error(self.folder):
            contents = self._stage(change.parts, check)
            fresh = [part for part, _ in change.puts]
            merged: list[Merged] = []
            entry: SegmentEntry | None = None
            if fresh:
                rows = sum(part.entry.passages for part in fresh)
                merged = choose_merged(self.folder, self.ledger, publication.list_gone(), rows)
                entry = self._write_rows(number, merged, fresh, check)
            check()
            with transaction(self.connection):
                digest = publication.publish(contents, entry, merged, self.description, reason)
                place_snapshot_file(self.folder, number, digest)
            sync_snapshot_file(self.folder, number)
            remove_unneeded(self.folder, self.connection, number, keep)
        return self.ledger.find_snapshot(number)

    def compact(self, *, check: Callable[[], None] = lambda: None) -> Snapshot:
        """Merge all segments into one, and let go of all that no reader pins but the newest.

        Args:
            check: Called where nothing is lost by stopping; raises to stop.

        Raises:
            ResourceError: If the disk is full; the index is then as it was.
        """
        number = self._latest() + 1
        publication = Publication(self.connection, Change(), number)
        with full_disk_as_error(self.folder):
            merged = choose_merged(self.folder, self.ledger, set(), 0, most=1)
            entry = self._write_rows(number, merged, [], check) if merged else None
            check()
            with transaction(self.connection):
                digest = publication.publish([], entry, merged, self.description, "compacted")
                place_snapshot_file(self.folder, number, digest)
            sync_snapshot_file(self.folder, number)
            oldest = remove_unneeded(self.folder, self.connection, number, 1)
            if oldest == number:
                self.connection.execute("VACUUM")
        return self.ledger.find_snapshot(number)

    def close(self) -> None:
        """Close the ledger and give the lock back."""
        self.ledger.close()
        self.connection.close()
        if self._lock is not None:
            self._lock.release()

    def _latest(self) -> int:
        found = self.connection.execute("SELECT max(number) FROM snapshots").fetchone()[0]
        return int(found or 0)

    def recall(self, name: str) -> Any:
        """Return what was measured under a name, or None."""
        return self.ledger.recall(name)

    def remember(self, name: str, value: Any) -> None:
        """Keep something that was measured of the newest snapshot, as JSON; see ``Ledger.recall``.

        It is no part of what the index holds, nor of any digest.
        """
        with transaction(self.connection):
            self.connection.execute(
                "INSERT OR REPLACE INTO settings VALUES (?, ?)",
                (f"measured {name}", json.dumps(value)),
            )

    def _count_rows(self, parts: Sequence[Part]) -> int:
        """Return about how many passages there will be."""
        known = self.ledger.snapshots()
        held = known[-1].passages if known else 0
        return held + sum(part.entry.passages for part in parts)

    def _stage(self, parts: Sequence[Part], check: Callable[[], None]) -> list[int]:
        """Write what documents became, unseen; return their contents' keys, in order."""
        return stage_parts(self.connection, parts, check, self.ledger.path)

    @property
    def _dimensions(self) -> int:
        """Numbers of a vector as segments keep it."""
        return int(self.description["embedder"]["dimensions"])

    def _write_rows(
        self,
        number: int,
        merged: Sequence[Merged],
        parts: Sequence[Part],
        check: Callable[[], None] = lambda: None,
    ) -> SegmentEntry:
        """Write a segment that no snapshot names yet."""
        return write_segment(
            self.folder,
            number,
            merged,
            parts,
            analyzer=self.analyzer if parts else None,
            dimensions=self._dimensions,
            dtype=str(self.description["settings"]["vectors"]),
            structures=Structures.of(self.description["settings"], self._count_rows(parts)),
            check=check,
        )
