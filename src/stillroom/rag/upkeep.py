"""Upkeep of an index beside updates: deleting documents by path, compacting, listing snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from stillroom.errors import DataError
from stillroom.provenance import find_output
from stillroom.rag.store.checking import Damage
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.snapshots import Snapshot
from stillroom.rag.store.writer import KEPT_SNAPSHOTS
from stillroom.rag.storing import open_store

__all__ = ["Compaction", "check_index", "compact_index", "delete_documents", "list_snapshots"]


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compacting an index changed on the disk; ``held`` snapshots are still being read."""

    bytes_before: int
    bytes_after: int
    segments_before: int
    segments_after: int
    held: int
    snapshot: int


def delete_documents(index: Path, paths: Sequence[str]) -> Snapshot:
    """Delete documents; no search finds them from the next refresh or opening on.

    Args:
        index: The artifact's folder or its output.
        paths: Paths as the index has them, folders with a slash at the end, or patterns with *.
            None deletes nothing.

    Returns:
        The newest snapshot.

    Raises:
        DataError: If a path is none of the index's; nothing is then deleted.
        ResourceError: If another process writes the index.
    """
    output = find_output(index, "index")
    with open_store(output).write() as writer:
        known = writer.list_keys()
        keys: set[int] = set()
        for wanted in paths:
            own = {key for path, key in known.items() if _matches(path, wanted)}
            if not own:
                raise _unknown(output, wanted, list(known))
            keys |= own
        if keys:
            change = Change(removes=sorted(keys))
            writer.commit(change, reason=f"deleted: {len(keys)}", keep=KEPT_SNAPSHOTS)
            renew_manifest(writer)
        return writer.find_snapshot()


def compact_index(index: Path) -> Compaction:
    """Merge all segments into one and remove what only older snapshots need.

    What a reader still holds stays until the next change after it ends.

    Args:
        index: The artifact's folder or its output.

    Raises:
        ResourceError: If another process writes the index, or the disk is full.
    """
    output = find_output(index, "index")
    store = open_store(output)
    with store.write() as writer:
        before = store.measure()
        snapshot = writer.compact()
        renew_manifest(writer)
        after = store.measure()
        return Compaction(
            before.bytes,
            after.bytes,
            before.pieces,
            after.pieces,
            len(writer.snapshots()) - 1,
            snapshot.number,
        )


def list_snapshots(index: Path) -> list[Snapshot]:
    """Return the snapshots of an index that can be opened, oldest first.

    Args:
        index: The artifact's folder or its output.

    Raises:
        IntegrityError: If the index is unfinished or damaged.
    """
    return open_store(find_output(index, "index")).snapshots()


def check_index(index: Path) -> list[Damage]:
    """Return everything in an index that does not agree; none means sound.

    Args:
        index: The artifact's folder or its output.

    Raises:
        DataError: If there is no such index.
        IntegrityError: If it is unfinished, or cannot be read at all.
    """
    return open_store(find_output(index, "index")).check()


def _matches(path: str, wanted: str) -> bool:
    if wanted.endswith("/"):
        return path.startswith(wanted)
    return path == wanted or ("*" in wanted and fnmatchcase(path, wanted))


def _unknown(output: Path, wanted: str, paths: Sequence[str]) -> DataError:
    shown = ", ".join(paths[:3])
    return DataError(
        f"the index holds no document at {wanted!r:.120}",
        code="rag.no-such-path",
        where=str(output),
        expected=f"a path as the index has it ({shown}, ...), a folder/ or a pattern",
        next="stillroom rag search INDEX shows paths",
    )
