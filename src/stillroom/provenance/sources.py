"""Lookup of parents, records, passages and documents, in files and in the catalog of an index.

The catalog has two public views, also for readers without Stillroom: ``current_passages`` (id,
path, position, body) and ``current_documents`` (id, path, digest, body). A passage's body is JSON;
a document's is JSON compressed with zlib. All other tables are private to the rag room. Nothing is
written here.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.provenance.artifact import Artifact, Parent, read_artifact
from stillroom.provenance.digests import digest_file
from stillroom.records import Passage, Record, find_record_file, read_records

__all__ = [
    "LEDGER",
    "connect_ledger",
    "count_origins",
    "describe_changes",
    "find_dropped",
    "find_passages",
    "find_records",
    "has_passages",
    "has_path",
    "is_path_parent",
    "is_reference",
    "iter_documents",
    "iter_objects",
    "iter_passages",
    "list_ancestors",
    "locate_document",
    "make_parent_absolute",
    "read_ledger",
    "resolve_parent",
]

_PASSAGES = "output/passages.jsonl"
_DOCUMENTS = "output/documents.jsonl"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


def find_passages(index_folder: Path, ids: Iterable[str]) -> dict[str, Passage]:
    """Return the requested passages of an index artifact, by id.

    Raises:
        DataError: If the index's passages are damaged.
    """
    wanted = set(ids)
    passages: dict[str, Passage] = {}
    for row in iter_passages(index_folder, wanted):
        try:
            passage = Passage.from_json(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged_error(index_folder / "output", error) from error
        if passage.id in wanted:
            passages[passage.id] = passage
            if len(passages) == len(wanted):
                break
    return passages


def has_passages(folder: Path) -> bool:
    """Return whether an artifact's folder has passages, in an index or in a file."""
    return (folder / "output" / LEDGER).is_file() or (folder / _PASSAGES).is_file()


def iter_passages(folder: Path, ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the passages of an artifact's folder as JSON values, optionally by ids."""
    if (folder / "output" / LEDGER).is_file():
        return read_ledger(folder / "output", "passages", ids)
    return iter_objects(folder / _PASSAGES, ids)


def iter_documents(folder: Path, ids: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of an artifact's folder as JSON values, optionally by ids."""
    if (folder / "output" / LEDGER).is_file():
        return read_ledger(folder / "output", "documents", ids)
    return iter_objects(folder / _DOCUMENTS, ids)


def resolve_parent(folder: Path, parent: Parent) -> Path:
    """Return the location of a parent of the artifact in ``folder``."""
    path = Path(parent.path)
    return path if path.is_absolute() else Path(os.path.normpath(folder.absolute() / path))


def make_parent_absolute(parent: Parent, work: Path) -> Parent:
    """Return a parent with an absolute path if it is relative to the working directory.

    ``work`` is the folder that becomes the artifact's.
    """
    if not is_path_parent(parent) or not parent.path or parent.path.startswith("../"):
        return parent
    path = Path(parent.path)
    if path.is_absolute() or (work / path).exists() or not path.exists():
        return parent
    return replace(parent, path=str(path.absolute()))


def is_reference(text: str) -> bool:
    """Return whether a parent's path is a reference (``hub:...``, ``https:...``), not a path."""
    return _SCHEME.match(text) is not None


def has_path(parent: Parent) -> bool:
    """Return whether a parent's path is text; a foreign artifact.json may hold anything."""
    return isinstance(parent.path, str)


def is_path_parent(parent: Parent) -> bool:
    """Return whether a parent has a path rather than a reference."""
    return has_path(parent) and not is_reference(parent.path)


def list_ancestors(path: Path) -> Iterator[tuple[Path, Artifact]]:
    """Yield the artifact at a path and all of its ancestors, nearest first, each once."""
    waiting = [Path(os.path.normpath(path.absolute()))]
    seen = set(waiting)
    for folder in waiting:  # grows during iteration
        try:
            artifact = read_artifact(folder)
        except DataError:  # data from elsewhere, or broken: the tree shows which
            continue
        yield folder, artifact
        for parent in artifact.parents:
            if not is_path_parent(parent):
                continue
            parent_folder = resolve_parent(folder, parent)
            if parent_folder not in seen:
                seen.add(parent_folder)
                waiting.append(parent_folder)


def describe_changes(index: Path, documents: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield, of the path and digest of each document of an index, what became of its file.

    Files that are the same, or whose folder cannot be reached, are left out. A file is
    digested once for each size and time of its last change.
    """
    try:
        parents = read_artifact(index).parents
    except DataError:
        return
    roots = [
        resolve_parent(index, parent)
        for parent in parents
        if parent.role == "documents" and is_path_parent(parent)
    ]
    # Path.exists fails where it cannot tell
    for path, digest in documents if roots and os.path.exists(roots[0]) else ():  # noqa: PTH110
        file = roots[0] if roots[0].is_file() else roots[0] / path
        if not Path(os.path.normpath(file)).is_relative_to(roots[0]):
            continue
        try:
            status = file.stat()
            state = status.st_size, status.st_mtime_ns, status.st_ino
            if stat.S_ISREG(status.st_mode) and _digest_once(file, *state) != digest:
                yield f"{path} has changed since it was indexed"
        except FileNotFoundError:
            yield f"{path} is gone since it was indexed"
        except OSError as error:
            yield f"{path} cannot be read any more ({error.strerror})"


@lru_cache(maxsize=4096)
def _digest_once(file: Path, size: int, modified: int, inode: int) -> str:
    return digest_file(file)


def locate_document(index: Path, path: str, digest: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return the file of an index's document, and notes if it changed or is missing."""
    try:
        parents = read_artifact(index).parents
    except DataError:
        return None, ("the index is not an artifact, so its documents' folder is unknown",)
    for parent in parents:
        if parent.role == "documents" and is_path_parent(parent):
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
    """Yield the objects of a JSONL file; with ids, only from lines that contain one."""
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
                raise _damaged_error(path, error) from error
            if not isinstance(row, dict):
                raise _damaged_error(path, TypeError("a line is not an object"))
            yield row


def find_records(path: Path, record_id: str) -> Iterator[Record]:
    """Yield the record with that id; lines of our own files without it are not parsed."""
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
    """Return the numbers of human, synthetic and unknown documents and passages of an index."""
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


def _damaged_error(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged: {error}",
        code="data.damaged",
        where=str(path),
        expected="the output of a finished job",
        next=f"stillroom verify {path.parent.parent}",
    )


LEDGER = "ledger.sqlite"
_TIMEOUT_S = 30.0
_BATCH_IDS = 500

_BY_ID = {
    "passages": "SELECT p.body FROM passages p WHERE p.id IN ({}) AND EXISTS ("
    "SELECT 1 FROM documents d JOIN current_documents c ON c.key = d.key "
    "WHERE d.content = p.key >> 24)",
    "documents": "SELECT body FROM current_documents WHERE id IN ({})",
}


def connect_ledger(path: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open an existing ledger; read-only unless ``write``.

    A reader may still roll back the incomplete transaction of a killed writer, as SQLite does,
    except on a read-only disk.

    Raises:
        sqlite3.Error: If there is no such file, or it is not a database.
    """
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_TIMEOUT_S,
        check_same_thread=False,
        isolation_level=None,
    )
    if not write:
        connection.execute("PRAGMA query_only=ON")
    return connection


def read_ledger(
    output: Path, view: Literal["passages", "documents"], ids: Iterable[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the current passages in order, or documents, as plain JSON values.

    ``output`` is the folder with ledger.sqlite.

    Raises:
        DataError: If the ledger is damaged, or has tenants: it can then only be read through an
            index with an access context.
    """
    path = output / LEDGER
    try:
        connection = connect_ledger(path)
        try:
            _refuse_tenants(connection, path)
            for body in _read_bodies(connection, view, None if ids is None else sorted(set(ids))):
                row = json.loads(zlib.decompress(body) if view == "documents" else body)
                if not isinstance(row, dict):
                    raise TypeError("a row is not an object")
                yield row
        finally:
            connection.close()
    except DataError:
        raise
    except (sqlite3.Error, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged_error(path, error) from error


def _refuse_tenants(connection: sqlite3.Connection, path: Path) -> None:
    row = connection.execute("SELECT value FROM settings WHERE name = 'description'").fetchone()
    if json.loads(row[0])["settings"].get("access", "open") != "open":
        raise DataError(
            "the index has tenants: its passages are not read without saying who asks",
            code="data.restricted",
            where=str(path),
            expected="an index that is open to all",
            next="open it by stillroom.rag.Index with an Access",
        )


def _read_bodies(
    connection: sqlite3.Connection, view: str, ids: Sequence[str] | None
) -> Iterator[bytes]:
    """Yield bodies; the view is one of two constants, not user input."""
    if ids is None:
        for (body,) in connection.execute(f"SELECT body FROM current_{view}"):  # noqa: S608
            yield body
        return
    for start in range(0, len(ids), _BATCH_IDS):
        some = ids[start : start + _BATCH_IDS]
        marks = ",".join("?" * len(some))
        for (body,) in connection.execute(_BY_ID[view].format(marks), some):
            yield body
