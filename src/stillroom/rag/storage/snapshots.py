"""Snapshots of an index: rows, digests, configuration, and the files that describe them.

The catalog is the source of truth; index.json and artifact.json are derived from it and written
after the commit. If the writer is killed in between, they describe the previous snapshot until the
next writer renews them. The artifact's digest covers index.json alone, and so the content of the
index but not its history; catalog, segments and snapshots are listed as timed files, and verified
like the others.

The layout of segments depends on the settings alone, so that all segments of an index have the same
structures; a structure is read if its file is listed.

Every document has a mark: the digest of its path, its content and its metadata. Documents are
assigned to buckets by their path's digest; a snapshot's digest covers the settings and the digests
of the buckets. A change therefore recomputes only the buckets that it touches, and equal documents
and settings have equal digests however they were added. The digest covers neither times nor the
number of the snapshot nor the layout of segments.

``index.json`` describes the newest snapshot without times or history: equal documents and settings
give equal bytes.

An index is always a folder with an artifact.json. Its content is in the folder itself, or in
another store that ``store.json`` refers to, without any secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.errors import DataError, IntegrityError, ResourceError
from stillroom.jobs import atomic_write
from stillroom.jobs.job import write_manifest
from stillroom.provenance import (
    ARTIFACT_FILE,
    FileEntry,
    Parent,
    digest_file,
    digest_json,
    read_artifact,
)
from stillroom.provenance.artifact import describe_host, list_installed_versions
from stillroom.provenance.digests import load_json
from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.interfaces import STORES, IndexStore
from stillroom.rag.types import DocumentMetadata
from stillroom.records import Origin, combine_origins

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter

__all__ = [
    "FOREVER",
    "INDEX_FILE",
    "INDEX_FORMAT",
    "PASSAGE_BITS",
    "STORE_FILE",
    "DocumentTable",
    "IndexConfig",
    "PassageRows",
    "SegmentLayout",
    "Snapshot",
    "build_file_entry",
    "check_file",
    "digest_bucket",
    "digest_document",
    "digest_snapshot",
    "get_bucket",
    "is_approximate",
    "is_timed_file",
    "make_busy_error",
    "make_damage_error",
    "make_format_error",
    "open_analyzer",
    "open_store",
    "pick_snapshot",
    "read_store_file",
    "update_manifest",
    "write_index_file",
    "write_store_file",
]


_MIN_DIGEST_LENGTH = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot of an index: its number, content digest, parent, reason, counts and time."""

    number: int
    digest: str
    parent: int
    reason: str
    documents: int
    passages: int
    truncated: int
    made: str

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of documents, passages, and passages truncated by the embedder."""
        return {
            "documents": self.documents,
            "passages": self.passages,
            "truncated": self.truncated,
        }


def pick_snapshot(known: Sequence[Snapshot], selector: int | str | None, where: Path) -> Snapshot:
    """Return a snapshot by its number or the start of its digest; by default the newest.

    Of several with one digest the newest is returned: their contents are equal.

    Raises:
        DataError: If there is no such snapshot, or it was removed.
        IntegrityError: If there are no snapshots.
    """
    text = str(selector)
    for snapshot in reversed(known):
        is_digest = len(text) >= _MIN_DIGEST_LENGTH and snapshot.digest.startswith(text)
        if selector is None or text == str(snapshot.number) or is_digest:
            return snapshot
    if selector is None:
        raise make_damage_error(where, "it has no snapshot")
    numbers = f"{known[0].number} to {known[-1].number}" if known else "none"
    raise DataError(
        f"the index has no snapshot {text!r:.80}",
        code="rag.no-such-snapshot",
        where=str(where.parent),
        expected=f"an existing one: {numbers}, or the start of its digest",
        next="list them: stillroom rag log INDEX; older ones are removed after newer commits",
    )


def make_busy_error(where: Path, holder: str) -> ResourceError:
    """Return an error for an index that another process is writing; names its artifact."""
    return ResourceError(
        f"another process is writing the index: {holder or 'its id is unknown'}",
        code="rag.busy",
        where=str(where.parent if where.name == "output" else where),
        expected="one writer at a time",
        next="wait for it to end; readers can go on",
    )


def make_damage_error(path: Path, reason: str) -> IntegrityError:
    """Return an error for a damaged file of an index."""
    return IntegrityError(
        f"the index is damaged: {path.name}: {reason}",
        code="rag.index-damaged",
        where=str(path),
        expected="the file that was written",
        next="stillroom rag verify INDEX --repair, or build the index again with --overwrite",
    )


def make_format_error(path: Path, found: object, expected: int) -> IntegrityError:
    """Return an error for an index or a graph that another version of Stillroom wrote."""
    return IntegrityError(
        f"{path.name} has format {found}, and this version of Stillroom reads format {expected}",
        code="rag.other-format",
        where=str(path),
        expected=f"format {expected}",
        next="build it again with --overwrite, or read it with the version that wrote it",
    )


def check_file(
    path: Path,
    recorded: tuple[int, str],
    *,
    verify: bool,
    damage: Callable[[Path, str], IntegrityError] = make_damage_error,
) -> None:
    """Compare a file with its recorded size and digest; ``damage`` makes the error.

    Raises:
        IntegrityError: If it is missing or has changed.
    """
    size, digest = recorded
    if not path.is_file():
        raise damage(path, "it is missing")
    if path.stat().st_size != size:
        raise damage(path, f"it has {path.stat().st_size} bytes instead of {size}")
    if verify and digest_file(path) != digest:
        raise damage(path, "its bytes have changed")


@dataclass(frozen=True, slots=True)
class DocumentTable:
    """Documents in order of path: keys, contents, passage counts, first positions; (N,) each."""

    keys: NDArray[np.int64]
    contents: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def without(self, keys: Sequence[int]) -> DocumentTable:
        """Return the table without some documents, by their keys."""
        is_kept = ~np.isin(self.keys, np.array(keys, dtype=np.int64))
        columns = (self.keys, self.contents, self.counts, self.starts)
        return DocumentTable(*(column[is_kept] for column in columns))


class PassageRows:
    """The passages of a view in order: documents by path, passages by position.

    A row is a number from 0 in that order. A position is the number of a passage in the store:
    ``places`` (N,) maps rows to positions, ``rows`` (P,) maps positions to rows, or -1 outside the
    view.
    """

    def __init__(self, table: DocumentTable, size: int, where: Path) -> None:
        """Number the passages of a table's documents.

        Raises:
            IntegrityError: If positions are out of range, or two documents overlap.
        """
        self.table = table
        self.firsts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(table.counts)])
        count = int(self.firsts[-1])
        steps = np.arange(count) - np.repeat(self.firsts[:-1], table.counts)
        self.places: NDArray[np.int64] = np.repeat(table.starts, table.counts) + steps
        self.rows: NDArray[np.int64] = np.full(size, -1, dtype=np.int64)
        if count and int(self.places.max()) >= size:
            raise make_damage_error(where, "a document is out of range")
        self.rows[self.places] = np.arange(count)
        if int((self.rows >= 0).sum()) != count:
            raise make_damage_error(where, "two documents overlap")
        self._order = np.argsort(table.contents, kind="stable")

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Mask of the positions in the view, (P,)."""
        return self.rows >= 0

    def locate(self, row: int) -> tuple[int, int]:
        """Return the key of a row's content, and the passage's position in it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        document = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return int(self.table.contents[document]), row - int(self.firsts[document])

    def document_of(self, row: int) -> int:
        """Return the key of a row's document."""
        return int(self.table.keys[int(np.searchsorted(self.firsts, row, side="right")) - 1])

    def find(self, content: int, position: int = 0) -> int | None:
        """Return the row of a content's passage, or None if it is not in the view."""
        if not len(self._order):
            return None
        index = int(np.searchsorted(self.table.contents, content, sorter=self._order))
        if index == len(self._order):
            return None
        document = int(self._order[index])
        if int(self.table.contents[document]) != content:
            return None
        return int(self.firsts[document]) + position


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Structures of a segment in addition to postings and vectors.

    ``sketches`` are binary codes for approximate search, ``sparse`` are term weights, ``tokens``
    are token vectors.
    """

    sketches: bool = False
    sparse: bool = False
    tokens: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], passages: int) -> Self:
        """Return the structures of an index by its settings and size."""
        return cls(
            sketches=is_approximate(settings, passages),
            sparse=bool(settings.get("sparse")),
            tokens=bool(settings.get("tokens")),
        )


def is_approximate(settings: Mapping[str, Any], passages: int, search: str | None = None) -> bool:
    """Return whether vectors are searched by their binary codes first.

    Without ``dense`` in the settings, as in older indexes, search is exact. ``search`` is the mode
    of one query, ``exact``, ``approximate`` or ``auto``; None for that of the settings.
    """
    dense = settings.get("dense") or {"search": "exact", "from_passages": 0}
    mode = search or str(dense["search"])
    if mode == "auto":
        return passages >= (int(dense["from_passages"]) or 1 << 62)
    return mode == "approximate"


_BUCKET_DIGITS = 3


def get_bucket(path: str) -> int:
    """Return the bucket of a path, 0 to 4095."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:_BUCKET_DIGITS], 16)


def digest_document(path: str, content: str, facts: DocumentMetadata) -> str:
    """Return the mark of a document at a path, from its content's mark and its metadata."""
    return digest_json([path, content, facts.tenant, sorted(facts.labels), dict(facts.fields)])


def digest_bucket(marks: Sequence[str]) -> str:
    """Return the digest of a bucket's marks in order of path; empty without marks."""
    return digest_json(list(marks)) if marks else ""


def digest_snapshot(description: Mapping[str, Any], buckets: Mapping[int, str]) -> str:
    """Return the digest of a snapshot from its settings and its buckets' digests."""
    return digest_json([description, sorted(item for item in buckets.items() if item[1])])


INDEX_FILE = "index.json"


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """Description of an index: settings, embedder, analyzer, and a digest of its preparation.

    ``preparation`` covers everything that affects passages and vectors, so that indexes with equal
    values can share them.
    """

    preparation: str
    settings: Mapping[str, Any]
    embedder: Mapping[str, Any]
    analyzer: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "preparation": self.preparation,
            "settings": dict(self.settings),
            "embedder": dict(self.embedder),
            "analyzer": dict(self.analyzer),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the value of ``to_json``."""
        return cls(data["preparation"], data["settings"], data["embedder"], data["analyzer"])


def write_index_file(folder: Path, description: IndexConfig, snapshot: Snapshot) -> None:
    """Write the index.json of a snapshot."""
    index_data = {
        "format": INDEX_FORMAT,
        "digest": snapshot.digest,
        "counts": snapshot.counts,
        **description.to_json(),
    }
    with atomic_write(folder / INDEX_FILE) as file:
        json.dump(index_data, file, ensure_ascii=False, indent=1)


def open_analyzer(description: IndexConfig, where: Path | str) -> Analyzer:
    """Return the analyzer of an index.

    Raises:
        IntegrityError: If the installed version gives other terms.
    """
    config = description.analyzer
    analyzer = Analyzer(config["stemming"])
    if analyzer.fingerprint != config["fingerprint"]:
        raise IntegrityError(
            "the installed text analyzer differs from the one that built the index",
            code="rag.analyzer-mismatch",
            where=str(where),
            expected=f"analyzer {config['fingerprint'][:16]}",
            next="build the index again with --overwrite (vectors are reused), or install "
            "the versions named in its artifact.json",
        )
    return analyzer


def is_timed_file(path: str) -> bool:
    """Return whether a file, by its path in the artifact, is excluded from the index's digest."""
    return Path(path).name != INDEX_FILE


def update_manifest(
    writer: IndexWriter,
    *,
    parents: Sequence[Parent] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write index.json and artifact.json of the newest snapshot.

    The origin becomes the weakest of the documents.

    Without an artifact.json above the folder only index.json is written. Parents replace those of
    their role; ``details`` are added to counts, digest and number of the snapshot.
    """
    folder, snapshot = writer.folder, writer.find_snapshot()
    write_index_file(folder, IndexConfig.from_json(writer.description), snapshot)
    root = folder.parent
    if not (root / ARTIFACT_FILE).is_file():
        return
    before = read_artifact(root)
    roles = {parent.role: parent for parent in parents}
    artifact = replace(
        before,
        files=(build_file_entry(root, folder / INDEX_FILE),),
        timed_files=(
            *sorted(writer.list_files(root), key=lambda entry: entry.path),
            *(entry for entry in before.timed_files if not entry.path.startswith("output/")),
        ),
        parents=(
            *(roles.pop(parent.role, parent) for parent in before.parents),
            *roles.values(),  # which earlier versions did not record
        ),
        origin={**before.origin, **_combine_kinds(writer)},
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
        versions=list_installed_versions(),
        host=describe_host(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    write_manifest(root, artifact)


def _combine_kinds(writer: IndexWriter) -> dict[str, str]:
    """Return the weakest origin of the documents; nothing without any."""
    keys = list(writer.list_keys().values())
    with closing(open_store(writer.folder).read(verify=False)) as opened:
        kinds = {str(kind) for _, kind in opened.list_values("origin", keys)}
    origins = [Origin.from_json({"kind": kind}) for kind in kinds]
    return {"kind": combine_origins(origins).kind} if origins else {}


def build_file_entry(root: Path, path: Path) -> FileEntry:
    """Return the entry of a file below ``root``, with its digest."""
    return FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, digest_file(path))


STORE_FILE = "store.json"


def open_store(folder: Path) -> IndexStorage:
    """Return the store of an index's folder.

    Raises:
        DataError: If store.json cannot be read.
        RecipeError: If it names an unknown store.
    """
    config = read_store_file(folder)
    method = STORES.build(config.pop("store", "folder"))
    return method.open(folder, config)


def read_store_file(folder: Path) -> dict[str, Any]:
    """Return the content of store.json, with the method under ``store``; empty without a file.

    Raises:
        DataError: If it is not a JSON object of that kind.
    """
    path = folder / STORE_FILE
    if not path.is_file():
        return {}
    try:
        config = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "store" not in config:
            raise ValueError("it has no store")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            code="data.damaged",
            where=str(path),
            expected="the file that the index was built with",
            next=f"stillroom verify {folder.parent}",
        ) from error
    return config


def write_store_file(folder: Path, method: IndexStore, config: Mapping[str, Any]) -> None:
    """Write which store has the content of an index.

    Secrets of the store are written as names of variables; ``config`` identifies the stored data,
    as the name of a schema.
    """
    with atomic_write(folder / STORE_FILE) as file:
        settings = method.model_dump(mode="json", exclude={"sparse", "late_interaction"})
        json.dump({"store": settings, **config}, file, indent=1)


INDEX_FORMAT = 3
FOREVER = 2**62
PASSAGE_BITS = 24
"""A passage's key is its content's key shifted by this many bits, plus its position."""
