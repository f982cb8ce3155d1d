"""Finding what a lineage names: parents, records, passages and documents, read one by one."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance.artifact import Artifact, Parent, read_artifact
from stillroom.provenance.digests import digest_file
from stillroom.provenance.ledger import LEDGER, read_ledger
from stillroom.records import Passage, Record, find_record_file, read_records

__all__ = [
    "count_origins",
    "find_dropped",
    "find_passages",
    "find_records",
    "holds_passages",
    "is_reference",
    "iter_documents",
    "iter_objects",
    "iter_passages",
    "list_ancestors",
    "look_at_document",
    "names_path",
    "names_something",
    "place_parent",
    "resolve_parent",
]

_PASSAGES = "output/passages.jsonl"
_DOCUMENTS = "output/documents.jsonl"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


def find_passages(index_folder: Path, ids: Iterable[str]) -> dict[str, Passage]:
    """Return those of the passages that an index artifact holds, by id.

    Raises:
        DataError: If the index's passages are damaged.
    """
    wanted = set(ids)
    found: dict[str, Passage] = {}
    for row in iter_passages(index_folder, wanted):
        try:
            passage = Passage.from_json(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(index_folder / "output", error) from error
        if passage.id in wanted:
            found[passage.id] = passage
            if len(found) == len(wanted):
                break
    return found


def holds_passages(folder: Path) -> bool:
    """Return whether an artifact's folder holds passages, in an index or in a file of them."""
    return (folder / "output" / LEDGER).is_file() or (folder / _PASSAGES).is_file()


def iter_passages(folder: Path, ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the passages of an artifact's folder as JSON values, or those of some ids."""
    if (folder / "output" / LEDGER).is_file():
        return read_ledger(folder / "output", "passages", ids)
    return iter_objects(folder / _PASSAGES, ids)


def iter_documents(folder: Path, ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of an artifact's folder as JSON values, or those of some ids."""
    if (folder / "output" / LEDGER).is_file():
        return read_ledger(folder / "output", "documents", ids)
    return iter_objects(folder / _DOCUMENTS, ids)


def resolve_parent(folder: Path, parent: Parent) -> Path:
    """Return where a parent of the artifact in ``folder`` lies; relative paths start there."""
    path = Path(parent.path)
    return path if path.is_absolute() else Path(os.path.normpath(folder.absolute() / path))


def place_parent(parent: Parent, work: Path) -> Parent:
    """Return a parent as its artifact names it: what was named from the working folder, whole.

    Args:
        parent: As a recipe names it; relative to the artifact, or to where this process works.
        work: The folder that becomes the artifact's.
    """
    if not names_path(parent) or not parent.path or parent.path.startswith("../"):
        return parent
    path = Path(parent.path)
    if path.is_absolute() or (work / path).exists() or not path.exists():
        return parent
    return replace(parent, path=str(path.absolute()))


def is_reference(text: str) -> bool:
    """Return whether a parent's path is a reference (``hub:...``, ``https:...``), not a path."""
    return _SCHEME.match(text) is not None


def names_something(parent: Parent) -> bool:
    """Return whether a parent's path is text at all; a stranger's artifact.json may hold else."""
    return isinstance(parent.path, str)


def names_path(parent: Parent) -> bool:
    """Return whether a parent is named by a path, not by a reference."""
    return names_something(parent) and not is_reference(parent.path)


def list_ancestors(path: Path) -> Iterator[tuple[Path, Artifact]]:
    """Yield the artifact at a path and all it was made from, nearest first, each once."""
    waiting = [Path(os.path.normpath(path.absolute()))]
    seen = set(waiting)
    for folder in waiting:  # grows while it is walked
        try:
            artifact = read_artifact(folder)
        except DataError:  # data made elsewhere, or broken: the tree says which
            continue
        yield folder, artifact
        for parent in artifact.parents:
            if not names_path(parent):
                continue
            found = resolve_parent(folder, parent)
            if found not in seen:
                seen.add(found)
                waiting.append(found)


def look_at_document(index: Path, path: str, digest: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return where a document of an index lies now, and whether it is what was read."""
    try:
        parents = read_artifact(index).parents
    except DataError:
        return None, ("the index is not an artifact, so its documents' folder is unknown",)
    for parent in parents:
        if parent.role == "documents" and names_path(parent):
            root = resolve_parent(index, parent)
            file = root if root.is_file() else root / path
            if not Path(os.path.normpath(file)).is_relative_to(root):
                return None, ("its path leaves the folder of documents",)
            if not file.is_file():
                return file, ("the file is gone",)
            is_same = not digest or digest_file(file) == digest
            return file, () if is_same else ("the file has changed since it was read",)
    return None, ("the index names no folder of documents",)


def iter_objects(path: Path, ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; with ids, only those of lines that mention one."""
    marks = [name.encode() for name in ids] if ids is not None else None
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.strip() or (marks is not None and not any(m in line for m in marks)):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _damaged(path, error) from error
            if not isinstance(row, dict):
                raise _damaged(path, TypeError("a line is not an object"))
            yield row


def find_records(path: Path, record_id: str) -> Iterator[Record]:
    """Yield the record of that id; lines of a file of ours that do not mention it are skipped."""
    try:
        file = find_record_file(path)
    except DataError:
        return
    if file.suffix == ".jsonl":
        for row in iter_objects(file, {record_id}):
            if row.get("id") == record_id and "messages" in row:
                yield Record.from_json(row)
                return
    for record in read_records(file, on_drop=lambda _number, _reason: None):
        if record.id == record_id:
            yield record
            return


def find_dropped(output: Path, record_id: str) -> Iterator[tuple[Record, str]]:
    """Yield the record of that id with its reason, if the job that wrote ``output`` dropped it."""
    for row in iter_objects(output / "dropped.jsonl", {record_id}):
        data = row.get("record", row)
        if isinstance(data, dict) and data.get("id") == record_id and "messages" in data:
            yield Record.from_json(data), str(row.get("reason", "no reason is recorded"))


def count_origins(folder: Path) -> list[str]:
    """Return how many documents and passages of an index are human, synthetic or unknown."""
    notes = []
    for name, rows in (("documents", iter_documents), ("passages", iter_passages)):
        counts: Counter[str] = Counter()
        for row in rows(folder):
            origin = row.get("origin")
            counts[
                str(origin.get("kind", "unknown")) if isinstance(origin, dict) else "unknown"
            ] += 1
        if counts:
            parts = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            notes.append(f"{sum(counts.values())} {name}: {parts}")
    return notes


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged: {error}",
        code="data.damaged",
        where=str(path),
        expected="what a finished job wrote",
        next=f"stillroom verify {path.parent.parent}",
    )
