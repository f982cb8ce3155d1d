"""Folder store: the index in its own folder, with its integrity check and repair.

The check cuts every passage's text from its document again and recomputes every digest. Derived
files can be rebuilt from the catalog; damage to the catalog itself is only reported.

A repair writes the documents of a damaged segment to a new one. Vectors are copied from the old
file if its digest matches; otherwise their texts are embedded again and compared with the digests
in the catalog. Older snapshots that read the damaged segment are removed, since they cannot be
repaired in place. Auxiliary vectors are copied or recomputed in the same way, with the models of
the index.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from stillroom.errors import IntegrityError
from stillroom.provenance.sources import connect_ledger
from stillroom.rag.embedding.passages import AuxiliaryEncoders, PassageEmbedder, open_encoders
from stillroom.rag.embedding.query_embedder import open_index_embedder
from stillroom.rag.interfaces import LateInteractionSettings, SparseSettings
from stillroom.rag.search_engines.late_interaction import TOKENS
from stillroom.rag.search_engines.sparse import WEIGHTS
from stillroom.rag.storage.folder.catalog import (
    SNAPSHOTS,
    Catalog,
    get_snapshot_file,
    write_snapshot_file,
)
from stillroom.rag.storage.folder.reader import (
    FolderReusableContent,
    FolderSnapshot,
    check_catalog_bytes,
    open_folder_snapshot,
)
from stillroom.rag.storage.folder.segments import (
    VECTORS,
    get_segment_folder,
    list_segment_folders,
    open_segment,
)
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import (
    IndexStorage,
    IndexUpdate,
    IntegrityIssue,
    StoreSize,
    check_manifest,
)
from stillroom.rag.storage.snapshots import FOREVER, Snapshot, check_file, update_manifest
from stillroom.rag.storage.tables import (
    ReusableTables,
    ReusedDocument,
    check_digest,
    check_documents,
    check_facts,
    check_texts,
)
from stillroom.rag.types import AuxiliaryVectors, build_embedding_texts, open_auxiliary_vectors
from stillroom.records import Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder

__all__ = ["FolderStore", "check_folder"]


@dataclass(frozen=True, slots=True)
class FolderStore(IndexStorage):
    """Store of an index in a folder."""

    folder: Path

    @override
    def read(self, selector: int | str | None = None, *, verify: bool) -> FolderSnapshot:
        return open_folder_snapshot(self.folder, selector, verify=verify)

    def hold(self) -> FolderReusableContent:
        """Open the newest snapshot to reuse its content."""
        return FolderReusableContent(open_folder_snapshot(self.folder, verify=False))

    @override
    def write(self) -> FolderIndexWriter:
        return FolderIndexWriter.open(self.folder)

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        with closing(Catalog(self.folder)) as catalog:
            return catalog.snapshots()

    def check(self) -> list[IntegrityIssue]:
        """Return all integrity issues; an empty list means that the index is intact."""
        return check_folder(self.folder)

    @override
    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        if not all(issue.is_derived for issue in issues):
            return  # a manifest written anew would let a damaged catalog be opened
        with FolderIndexWriter.open(self.folder) as writer:  # removes what was interrupted
            for snapshot in writer.catalog.snapshots():
                write_snapshot_file(self.folder, snapshot.number, snapshot.digest)
            damaged = sorted({issue.segment for issue in issues if issue.segment})
            if damaged:
                _rewrite(writer, damaged, embedder)
            update_manifest(writer)

    def measure(self) -> StoreSize:
        """Return the size of the folder."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        with closing(Catalog(self.folder)) as catalog:
            pieces = int(catalog.query("SELECT count(*) FROM segments")[0][0])
        return StoreSize(size, pieces)

    def discard(self) -> None:
        """Do nothing: the store has no data outside the folder."""


def check_folder(folder: Path) -> list[IntegrityIssue]:
    """Return all integrity issues of an index's folder; an empty list means that it is intact.

    Raises:
        IntegrityError: If it is unfinished, or its catalog cannot be read at all.
    """
    with closing(Catalog(folder)) as catalog:
        issues = [*_check_pages(catalog)]
        if issues:  # nothing in such a catalog is reliable
            return issues
        issues += [*check_texts(catalog), *check_documents(catalog), *_check_placements(catalog)]
        issues += [*check_facts(catalog), *check_digest(catalog, catalog.description)]
        issues += [*_check_segments(folder, catalog), *_check_orphans(folder, catalog)]
        issues += check_manifest(folder, catalog.find_snapshot())
        if all(issue.is_derived for issue in issues):
            issues += _check_bytes(folder, catalog)
        return issues


def _check_pages(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Run SQLite's check of pages and indexes."""
    try:
        with closing(connect_ledger(catalog.path)) as connection:
            rows = connection.execute("PRAGMA integrity_check(5)").fetchall()
    except sqlite3.Error as error:
        rows = [(str(error),)]
    for (message,) in rows:
        if message != "ok":
            yield catalog.issue("pages", str(message))


def _check_bytes(folder: Path, catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Compare a catalog whose content agrees with the digest that opening compares it with.

    What has changed is none of its content, so that a repair records the digest anew.
    """
    try:
        check_catalog_bytes(folder, catalog.find_snapshot())
    except IntegrityError:
        yield IntegrityIssue(catalog.path.name, "its bytes have changed, its content agrees", True)


def _check_placements(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Report versions of documents that are not in exactly one segment."""
    rows = catalog.query(
        "SELECT d.path, count(p.document) FROM documents d LEFT JOIN placements p "
        "ON p.document = d.key AND p.died >= d.died GROUP BY d.key ORDER BY d.key"
    )
    for path, placements in rows:
        if placements != 1:
            yield catalog.issue("placements", f"{path}: has {placements} placements")


def _check_segments(folder: Path, catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Verify the files of every segment of a snapshot."""
    checked: set[int] = set()
    for snapshot in catalog.snapshots():
        for entry in catalog.segments(snapshot.number):
            if entry.number in checked:
                continue
            checked.add(entry.number)
            try:
                open_segment(folder, entry, verify=True)
            except IntegrityError as error:
                problem = error.problems[0].what.removeprefix("the index is damaged: ")
                segment_path = (
                    get_segment_folder(folder, entry.number).relative_to(folder).as_posix()
                )
                yield IntegrityIssue(segment_path, problem, is_derived=True, segment=entry.number)
    rows = catalog.query(
        "SELECT p.segment, max(p.start + d.passages), s.rows FROM placements p "
        "JOIN documents d ON d.key = p.document LEFT JOIN segments s ON s.number = p.segment "
        "WHERE p.died > (SELECT min(number) FROM snapshots) GROUP BY p.segment"
    )
    for number, end, size in rows:
        if size is None or end > size:
            yield catalog.issue("placements", f"documents lie beyond segment {number}")


def _check_orphans(folder: Path, catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Report files without a snapshot, and snapshots without their file."""
    known_folders = {
        get_segment_folder(folder, n) for (n,) in catalog.query("SELECT number FROM segments")
    }
    for path in list_segment_folders(folder):
        if path not in known_folders:
            yield IntegrityIssue(path.relative_to(folder).as_posix(), "no snapshot names it", True)
    files = {get_snapshot_file(folder, snapshot.number) for snapshot in catalog.snapshots()}
    snapshot_folder = folder / SNAPSHOTS
    existing = set(snapshot_folder.iterdir()) if snapshot_folder.is_dir() else set()
    for path in sorted(files - existing):
        yield IntegrityIssue(path.relative_to(folder).as_posix(), "it is missing", True)
    for path in sorted(existing - files):
        yield IntegrityIssue(
            path.relative_to(folder).as_posix(), "no snapshot has this number", True
        )
    if catalog.query("SELECT 1 FROM settings WHERE name = 'staged'"):
        yield IntegrityIssue(
            catalog.path.name, "a writer was killed and left passages unseen", True
        )


def _rewrite(writer: FolderIndexWriter, damaged: Sequence[int], embedder: Embedder | None) -> None:
    """Rewrite the documents of damaged segments, and remove older snapshots."""
    placeholders = ",".join("?" * len(damaged))
    rows = writer.catalog.query(
        "SELECT d.content, p.segment, p.start FROM documents d "  # noqa: S608
        "JOIN placements p ON p.document = d.key AND p.died = ? "
        f"WHERE d.died = ? AND p.segment IN ({placeholders})",
        (FOREVER, FOREVER, *damaged),
    )
    places = {content: (segment, start) for content, segment, start in rows}
    repairer = _VectorRepairer(writer, embedder, places)
    puts = [part for part in repairer.list_parts() if part[0].content in places]
    writer.commit(IndexUpdate(puts=puts), reason="repaired", keep=1)


_AUXILIARY_FILES = {"sparse": WEIGHTS, "tokens": TOKENS}


class _VectorRepairer(ReusableTables):
    """Restores vectors from an intact file or with the embedder."""

    def __init__(
        self,
        writer: FolderIndexWriter,
        embedder: Embedder | None,
        places: Mapping[int, tuple[int, int]],
    ) -> None:
        """``places`` are the segment and first row of each damaged content."""
        super().__init__(writer)
        self.places = places
        self.folder, self.description = writer.folder, writer.description
        self.catalog = writer.catalog
        self._embedder = embedder
        self._files: dict[int, NDArray[Any] | None] = {}
        self._auxiliary: dict[int, AuxiliaryVectors | None] = {}
        self._encoders: AuxiliaryEncoders | None = None

    @override
    def vectors_of(self, part: ReusedDocument) -> NDArray[Any]:
        segment, start = self.places[part.content]
        matrix = self._open_vectors(segment)
        if matrix is not None:
            return np.asarray(matrix[start : start + part.entry.passages])
        return self._embed(part)

    @override
    def extras_of(self, part: ReusedDocument) -> AuxiliaryVectors:
        settings = self.description["settings"]
        names = [file for name, file in _AUXILIARY_FILES.items() if settings.get(name)]
        if not names:
            return AuxiliaryVectors()
        segment, start = self.places[part.content]
        if segment not in self._auxiliary:
            intact = all(self._find_intact(segment, name) for name in names)
            folder = get_segment_folder(self.folder, segment)
            self._auxiliary[segment] = open_auxiliary_vectors(folder, names) if intact else None
        auxiliary = self._auxiliary[segment]
        if auxiliary is not None:
            return auxiliary.span(start, start + part.entry.passages)
        texts = self._list_texts([Passage.from_json(json.loads(x)) for x in part.passage_lines()])
        return self._open_encoders(settings).encode(texts)

    def _open_vectors(self, number: int) -> NDArray[Any] | None:
        """Return a segment's vectors if the file is intact, or None."""
        if number not in self._files:
            intact = self._find_intact(number, VECTORS)
            self._files[number] = np.load(intact, mmap_mode="r") if intact else None
        return self._files[number]

    def _find_intact(self, number: int, name: str) -> Path | None:
        """Return the path of a segment's file if its bytes are as recorded, or None."""
        files = self.catalog.query("SELECT files FROM segments WHERE number = ?", (number,))
        size, digest = json.loads(files[0][0])[name]
        path = get_segment_folder(self.folder, number) / name
        try:
            check_file(path, (int(size), str(digest)), verify=True)
        except IntegrityError:
            return None
        return path

    def _embed(self, part: ReusedDocument) -> NDArray[Any]:
        """Embed a document's passages again.

        Raises:
            IntegrityError: If the texts differ from those that were embedded.
        """
        embedder, settings = self._open(), self.description["settings"]
        passages = [Passage.from_json(json.loads(line)) for line in part.passage_lines()]
        passage_embedder = PassageEmbedder(embedder, str(settings["vectors"]))
        texts = self._list_texts(passages)
        digests, matrix = passage_embedder.embed(part.entry.path, passages, texts)
        if [digest.embedded for digest in digests] != [digest.embedded for digest in part.marks()]:
            raise IntegrityError(
                f"the texts to embed of {part.entry.path} differ from those in the index",
                code="rag.other-preparation",
                where=str(self.folder),
                expected="the version that built the index",
                next="build the index again with --overwrite",
            )
        return matrix

    def _open(self) -> Embedder:
        recorded = self.description["embedder"]
        self._embedder = open_index_embedder(recorded, self.folder, self._embedder)
        return self._embedder

    def _list_texts(self, passages: Sequence[Passage]) -> list[str]:
        with_headings = self.description["settings"]["with_headings"]
        return build_embedding_texts(passages, self._open(), with_headings=with_headings)

    def _open_encoders(self, settings: Mapping[str, Any]) -> AuxiliaryEncoders:
        if self._encoders is None:
            recorded = {name: settings[name] for name in _AUXILIARY_FILES if settings.get(name)}
            chosen = {
                name: {key: value for key, value in kept.items() if key != "fingerprint"}
                for name, kept in recorded.items()
            }
            encoders = open_encoders(
                SparseSettings(**chosen["sparse"]) if "sparse" in chosen else None,
                LateInteractionSettings(**chosen["tokens"]) if "tokens" in chosen else None,
                self._open(),
            )
            if encoders is None or encoders.settings != recorded:
                raise IntegrityError(
                    "the models of sparse or late_interaction are not those that built the index",
                    code="rag.embedder-mismatch",
                    where=str(self.folder),
                    expected="the models that the index names",
                    next="restore them, or build the index again with the new ones",
                )
            self._encoders = encoders
        return self._encoders
