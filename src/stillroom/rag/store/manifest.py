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
from typing import TYPE_CHECKING, Any

from stillroom.jobs import atomic_write
from stillroom.provenance import ARTIFACT_FILE, FileEntry, Parent, digest_file, read_artifact
from stillroom.provenance.artifact import describe_host, installed_versions
from stillroom.rag.store.description import INDEX, Description, write_index_file

if TYPE_CHECKING:
    from stillroom.rag.store.protocol import StoreWriter

__all__ = ["entry_of", "is_timed", "renew_manifest"]


def is_timed(path: str) -> bool:
    """Return whether a file of an index, by its path in the artifact, is no part of its digest."""
    return Path(path).name != INDEX


def renew_manifest(
    writer: StoreWriter,
    *,
    parents: Sequence[Parent] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write index.json and artifact.json of the newest snapshot.

    Args:
        writer: Open over the index; without an artifact.json above its folder, only index.json is
            written.
        parents: What the index is now made from in these roles; others stay as they were.
        details: What to say beside counts, digest and number of the snapshot.
    """
    folder, snapshot = writer.folder, writer.find_snapshot()
    write_index_file(folder, Description.from_json(writer.description), snapshot)
    home = folder.parent
    if not (home / ARTIFACT_FILE).is_file():
        return
    before = read_artifact(home)
    roles = {parent.role: parent for parent in parents}
    artifact = replace(
        before,
        files=(entry_of(home, folder / INDEX),),
        timed_files=tuple(sorted(writer.list_files(home), key=lambda entry: entry.path)),
        parents=tuple(roles.get(parent.role, parent) for parent in before.parents),
        details={
            **before.details,
            **(details or {}),
            **snapshot.counts,
            "index": snapshot.digest,
            "snapshot": snapshot.number,
            "failed": [
                {"path": path, "code": code, "reason": reason}
                for path, code, reason in writer.list_failures()
            ],
        },
        versions=installed_versions(),
        host=describe_host(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    with atomic_write(home / ARTIFACT_FILE) as file:
        json.dump(artifact.to_json(), file, ensure_ascii=False, indent=1)


def entry_of(home: Path, path: Path) -> FileEntry:
    """Return the entry of a file below ``home``, with its digest."""
    return FileEntry(path.relative_to(home).as_posix(), path.stat().st_size, digest_file(path))
