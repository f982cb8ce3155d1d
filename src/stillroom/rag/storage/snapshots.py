"""Snapshots of an index: rows, digests, configuration, and the files that describe them.

The ledger is the truth; index.json and artifact.json follow from it and are written after the
commit. A kill in between leaves those of the snapshot before, which the next writer renews. The
artifact's digest covers index.json alone, and so what the index holds, not how it came about;
ledger, segments and snapshots are listed as timed files: verified like the others.

Follows from the settings alone, so that every segment of an index holds the same, and a structure
is read where its file is listed.

Every document has a mark: the digest of its path, of what its bytes became and of its facts. Marks
fall into buckets by their path's digest; a snapshot's digest covers the settings and the digests of
the buckets. A change therefore recomputes the buckets that it touches, not all of the index, and
the same documents and settings have the same digest whether they came at once or one by one.

Neither the clock, nor the number of the snapshot, nor the layout of segments is part of it.

``index.json`` follows from the newest snapshot and holds nothing that depends on the clock or on
how the index came about: of the same documents and settings it has the same bytes.

An index is always a folder with an artifact.json. What it holds lies in the folder itself, or, for
other stores, elsewhere; ``store.json`` then says where, without any secret.

It is no part of what the index holds: two indexes that hold the same have one digest, whoever was
asked how to search them. A retriever that a question names is always the one that is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import atomic_write
from stillroom.provenance import (
    ARTIFACT_FILE,
    FileEntry,
    Parent,
    digest_file,
    digest_json,
    find_output,
    read_artifact,
)
from stillroom.provenance.artifact import describe_host, list_installed_versions
from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.interfaces import DEFAULT_RETRIEVER, RETRIEVERS, STORES, IndexStore, Retriever
from stillroom.rag.types import DocumentMetadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.storage.protocol import IndexStorage, IndexWriter, SnapshotReader

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
    "digest_bucket",
    "digest_document",
    "digest_snapshot",
    "get_bucket",
    "is_approximate",
    "is_timed_file",
    "make_damage_error",
    "open_analyzer",
    "open_store",
    "pick_snapshot",
    "read_store_file",
    "read_tuned_retriever",
    "update_manifest",
    "write_index_file",
    "write_store_file",
    "write_tuned_retriever",
]


_MIN_DIGEST_LENGTH = 6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One state of an index: its number, the digest of what it holds, and how it came about."""

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
        """How many documents and passages there are, and passages cut by the embedder."""
        return {
            "documents": self.documents,
            "passages": self.passages,
            "truncated": self.truncated,
        }


def pick_snapshot(known: Sequence[Snapshot], wanted: int | str | None, where: Path) -> Snapshot:
    """Return a snapshot by its number or by its digest's beginning; by default the newest.

    Of several with one digest the newest is taken: they hold the same.

    Args:
        known: What there is, oldest first.
        wanted: Number, beginning of a digest, or None.
        where: The ledger, for errors.

    Raises:
        DataError: If there is none, or none any more.
        IntegrityError: If there is none at all.
    """
    text = str(wanted)
    for snapshot in reversed(known):
        is_digest = len(text) >= _MIN_DIGEST_LENGTH and snapshot.digest.startswith(text)
        if wanted is None or text == str(snapshot.number) or is_digest:
            return snapshot
    if wanted is None:
        raise make_damage_error(where, "it holds no snapshot")
    numbers = f"{known[0].number} to {known[-1].number}" if known else "none"
    raise DataError(
        f"the index holds no snapshot {text!r:.80}",
        code="rag.no-such-snapshot",
        where=str(where.parent),
        expected=f"one that is kept: {numbers}, or the beginning of its digest",
        next="list them: stillroom rag log INDEX; older ones go when newer ones come",
    )


def make_damage_error(path: Path, reason: str) -> IntegrityError:
    """Return the error that says which file of an index is not what was written."""
    return IntegrityError(
        f"the index is damaged: {path.name}: {reason}",
        code="rag.index-damaged",
        where=str(path),
        expected="the file that was written",
        next="stillroom rag verify INDEX --repair, or build the index again with --overwrite",
    )


@dataclass(frozen=True, slots=True)
class DocumentTable:
    """Documents in order of path: keys, contents, numbers of passages, first places; (N,) each."""

    keys: NDArray[np.int64]
    contents: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def without(self, keys: Sequence[int]) -> DocumentTable:
        """Return the table without the documents of some keys."""
        stays = ~np.isin(self.keys, np.array(keys, dtype=np.int64))
        columns = (self.keys, self.contents, self.counts, self.starts)
        return DocumentTable(*(column[stays] for column in columns))


class PassageRows:
    """The passages of a view in order: documents by path, passages by position.

    A row is a number from 0 in that order. A store counts places, as things were written there:
    ``places`` (N,) gives the place of each row, ``rows`` (P,) the reverse, -1 where the view sees
    no passage.
    """

    def __init__(self, table: DocumentTable, size: int, where: Path) -> None:
        """Order the passages of a table's documents.

        Args:
            table: The documents.
            size: How many places there are.
            where: What the table is from, for errors.

        Raises:
            IntegrityError: If a document lies beyond the places, or two in one.
        """
        self.table = table
        self.firsts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(table.counts)])
        count = int(self.firsts[-1])
        steps = np.arange(count) - np.repeat(self.firsts[:-1], table.counts)
        self.places: NDArray[np.int64] = np.repeat(table.starts, table.counts) + steps
        self.rows: NDArray[np.int64] = np.full(size, -1, dtype=np.int64)
        if count and int(self.places.max()) >= size:
            raise make_damage_error(where, "a document lies beyond what is there")
        self.rows[self.places] = np.arange(count)
        if int((self.rows >= 0).sum()) != count:
            raise make_damage_error(where, "two documents lie in one place")
        self._order = np.argsort(table.contents, kind="stable")

    def __len__(self) -> int:
        """Return how many passages the view sees."""
        return int(self.firsts[-1])

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which places the view sees, (P,)."""
        return self.rows >= 0

    def locate(self, row: int) -> tuple[int, int]:
        """Return the key of a row's content, and the passage's position in it."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        at = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return int(self.table.contents[at]), row - int(self.firsts[at])

    def document_of(self, row: int) -> int:
        """Return the key of the document that a row is of."""
        return int(self.table.keys[int(np.searchsorted(self.firsts, row, side="right")) - 1])

    def find(self, content: int, position: int = 0) -> int | None:
        """Return the row of a content's passage, or None where the view does not see it."""
        if not len(self._order):
            return None
        at = int(np.searchsorted(self.table.contents, content, sorter=self._order))
        if at == len(self._order):
            return None
        document = int(self._order[at])
        if int(self.table.contents[document]) != content:
            return None
        return int(self.firsts[document]) + position


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """What a segment is written with.

    ``sketches`` of its vectors, for approximate search; ``sparse``: term weights; ``tokens``:
    vectors of tokens.
    """

    sketches: bool = False
    sparse: bool = False
    tokens: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], passages: int) -> Self:
        """Return what an index of so many passages keeps by its settings."""
        return cls(
            sketches=is_approximate(settings, passages),
            sparse=bool(settings.get("sparse")),
            tokens=bool(settings.get("tokens")),
        )


def is_approximate(settings: Mapping[str, Any], passages: int, search: str | None = None) -> bool:
    """Return whether vectors are searched by their sketches first.

    Args:
        settings: Those of an index; one that was made before there was a choice is exact.
        passages: How many there are to be searched.
        search: What one question asks for: ``exact``, ``approximate`` or ``auto``; None for what
            the settings say.
    """
    dense = settings.get("dense") or {"search": "exact", "from_passages": 0}
    chosen = search or str(dense["search"])
    if chosen == "auto":
        return passages >= (int(dense["from_passages"]) or 1 << 62)
    return chosen == "approximate"


_BUCKET_DIGITS = 3


def get_bucket(path: str) -> int:
    """Return the bucket of a path, 0 to 4095."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:_BUCKET_DIGITS], 16)


def digest_document(path: str, content: str, facts: DocumentMetadata) -> str:
    """Return the mark of a document at a path: of its content's mark and its facts."""
    return digest_json([path, content, facts.tenant, sorted(facts.labels), dict(facts.fields)])


def digest_bucket(marks: Sequence[str]) -> str:
    """Return the digest of a bucket's marks, given in order of path; empty where there are none."""
    return digest_json(list(marks)) if marks else ""


def digest_snapshot(description: Mapping[str, Any], buckets: Mapping[int, str]) -> str:
    """Return the digest of a snapshot from its settings and its buckets' digests."""
    return digest_json([description, sorted(item for item in buckets.items() if item[1])])


INDEX_FILE = "index.json"


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """What shaped an index; ``settings`` are the recipe's, ``preparation`` a digest.

    ``preparation`` covers all that shapes passages and vectors, so that two indexes with the same
    one may share them.
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
        """Read what ``to_json`` wrote."""
        return cls(data["preparation"], data["settings"], data["embedder"], data["analyzer"])


def write_index_file(folder: Path, description: IndexConfig, snapshot: Snapshot) -> None:
    """Write index.json of a snapshot."""
    told = {
        "format": INDEX_FORMAT,
        "digest": snapshot.digest,
        "counts": snapshot.counts,
        **description.to_json(),
    }
    with atomic_write(folder / INDEX_FILE) as file:
        json.dump(told, file, ensure_ascii=False, indent=1)


def open_analyzer(description: IndexConfig, where: Path | str) -> Analyzer:
    """Return the text analysis that made an index.

    Raises:
        IntegrityError: If the installed one gives other terms.
    """
    told = description.analyzer
    analyzer = Analyzer(told["stemming"])
    if analyzer.fingerprint != told["fingerprint"]:
        raise IntegrityError(
            "the installed text analysis differs from the one that made the index",
            code="rag.analyzer-mismatch",
            where=str(where),
            expected=f"analyzer {told['fingerprint'][:16]}",
            next="build the index again with --overwrite (it keeps its vectors), or install "
            "the versions named in its artifact.json",
        )
    return analyzer


def is_timed_file(path: str) -> bool:
    """Return whether a file of an index, by its path in the artifact, is no part of its digest."""
    return Path(path).name != INDEX_FILE


def update_manifest(
    writer: IndexWriter,
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
    write_index_file(folder, IndexConfig.from_json(writer.description), snapshot)
    home = folder.parent
    if not (home / ARTIFACT_FILE).is_file():
        return
    before = read_artifact(home)
    roles = {parent.role: parent for parent in parents}
    artifact = replace(
        before,
        files=(build_file_entry(home, folder / INDEX_FILE),),
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
        versions=list_installed_versions(),
        host=describe_host(),
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    with atomic_write(home / ARTIFACT_FILE) as file:
        json.dump(artifact.to_json(), file, ensure_ascii=False, indent=1)


def build_file_entry(home: Path, path: Path) -> FileEntry:
    """Return the entry of a file below ``home``, with its digest."""
    return FileEntry(path.relative_to(home).as_posix(), path.stat().st_size, digest_file(path))


STORE_FILE = "store.json"


def open_store(folder: Path) -> IndexStorage:
    """Return the store of the index whose own files lie in ``folder``.

    Raises:
        DataError: If store.json cannot be read.
        RecipeError: If it names a store that is not known.
    """
    told = read_store_file(folder)
    method = STORES.build(told.pop("store", "folder"))
    return method.open(folder, told)


def read_store_file(folder: Path) -> dict[str, Any]:
    """Return what store.json says, the method under ``store``; nothing where there is no such file.

    Raises:
        DataError: If it is no JSON object of that kind.
    """
    path = folder / STORE_FILE
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or "store" not in told:
            raise ValueError("it names no store")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            code="data.damaged",
            where=str(path),
            expected="the file that the index was made with",
            next=f"stillroom verify {folder.parent}",
        ) from error
    return told


def write_store_file(folder: Path, method: IndexStore, told: Mapping[str, Any]) -> None:
    """Say which store holds the index of a folder.

    Args:
        folder: Of the artifact's own files.
        method: The store; its secrets are written as the names of variables.
        told: What it needs beside its settings to find the index again.
    """
    with atomic_write(folder / STORE_FILE) as file:
        json.dump({"store": method.model_dump(mode="json"), **told}, file, indent=1)


_SETTING_NAME = "retriever"


def write_tuned_retriever(index: Path, way: str, settings: Mapping[str, Any]) -> None:
    """Let an index be searched by a retriever where nobody names one; readers that open it next.

    Args:
        index: The artifact's folder or its output.
        way: The retriever as a line, for people.
        settings: Its name and settings.

    Raises:
        ResourceError: If another process writes the index.
    """
    with open_store(find_output(index, "index")).write() as writer:
        writer.remember(_SETTING_NAME, {"way": way, "settings": dict(settings)})
        update_manifest(writer, details={"retriever": way})


def read_tuned_retriever(opened: SnapshotReader) -> Retriever:
    """Return the retriever that an index is searched by where nobody names one.

    Raises:
        RecipeError: If it names a method or setting that is not known any more.
    """
    told = opened.recall(_SETTING_NAME)
    return RETRIEVERS.build(told["settings"] if told else DEFAULT_RETRIEVER)


INDEX_FORMAT = 3


FOREVER = 2**62


PASSAGE_BITS = 24
