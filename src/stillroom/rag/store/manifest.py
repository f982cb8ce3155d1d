"""artifact.json after a change: the folder of an index stays an artifact that can be verified.

The ledger is the truth; index.json and artifact.json follow from it and are written after the
commit. A kill in between leaves those of the snapshot before, which the next writer renews. The
artifact's digest covers index.json alone, and so what the index holds, not how it came about;
ledger, segments and snapshots are listed as timed files: verified like the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.jobs import atomic_write
from stillroom.provenance import ARTIFACT_FILE, FileEntry, Parent, digest_file, read_artifact
from stillroom.provenance.artifact import describe_host, installed_versions
from stillroom.provenance.ledger import LEDGER
from stillroom.rag.store.description import INDEX, Description, write_index_file
from stillroom.rag.store.ledger import Ledger, Snapshot
from stillroom.rag.store.locking import snapshot_file
from stillroom.rag.store.schema import FOREVER
from stillroom.rag.store.segments import segment_folder

__all__ = ["is_timed", "renew_manifest"]


def is_timed(path: str) -> bool:
    """Return whether a file of an index, by its path in the artifact, is no part of its digest."""
    return Path(path).name != INDEX


def renew_manifest(
    folder: Path,
    ledger: Ledger,
    *,
    parents: Sequence[Parent] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write index.json and artifact.json of the newest snapshot.

    Args:
        folder: The index's; without an artifact.json above it, only index.json is written.
        ledger: Open over the same folder.
        parents: What the index is now made from in these roles; others stay as they were.
        details: What to say beside counts, digest and number of the snapshot.
    """
    snapshot = ledger.find_snapshot()
    write_index_file(folder, Description.from_json(ledger.description), snapshot)
    home = folder.parent
    if not (home / ARTIFACT_FILE).is_file():
        return
    before = read_artifact(home)
    roles = {parent.role: parent for parent in parents}
    artifact = replace(
        before,
        files=(_entry(home, folder / INDEX),),
        timed_files=tuple(_list_files(home, folder, ledger, snapshot)),
        parents=tuple(roles.get(parent.role, parent) for parent in before.parents),
        details={
            **before.details,
            **(details or {}),
            **snapshot.counts,
            "index": snapshot.digest,
            "snapshot": snapshot.number,
            "failed": [
                {"path": path, "code": code, "reason": reason}
                for path, code, reason in ledger.query(
                    "SELECT path, code, reason FROM failures WHERE died = ? ORDER BY path",
                    (FOREVER,),
                )
            ],
        },
        versions=installed_versions(),
        host=describe_host(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    with atomic_write(home / ARTIFACT_FILE) as file:
        json.dump(artifact.to_json(), file, ensure_ascii=False, indent=1)


def _list_files(home: Path, folder: Path, ledger: Ledger, snapshot: Snapshot) -> list[FileEntry]:
    """Return the entries of all that the ledger names; a segment's digests it knows itself."""
    entries = [_entry(home, folder / LEDGER)]
    for number, files in ledger.query("SELECT number, files FROM segments ORDER BY number"):
        place = segment_folder(folder, number).relative_to(home).as_posix()
        entries += [
            FileEntry(f"{place}/{name}", int(size), str(digest))
            for name, (size, digest) in sorted(json.loads(files).items())
        ]
    for known in ledger.snapshots():
        if known.number <= snapshot.number:
            entries.append(_entry(home, snapshot_file(folder, known.number)))
    return sorted(entries, key=lambda entry: entry.path)


def _entry(home: Path, path: Path) -> FileEntry:
    return FileEntry(path.relative_to(home).as_posix(), path.stat().st_size, digest_file(path))
