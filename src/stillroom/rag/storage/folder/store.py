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
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import IntegrityError, StillroomError
from stillroom.provenance.sources import connect_ledger
from stillroom.rag.embedding.passages import AuxiliaryEncoders, PassageEmbedder, open_encoders
from stillroom.rag.interfaces import LateInteractionSettings, SparseSettings
from stillroom.rag.search_engines.late_interaction import TOKENS
from stillroom.rag.search_engines.sparse import WEIGHTS
from stillroom.rag.storage.filters import derive_fields, list_values
from stillroom.rag.storage.folder.catalog import (
    SNAPSHOTS,
    Catalog,
    get_snapshot_file,
    write_snapshot_file,
)
from stillroom.rag.storage.folder.reader import (
    FolderReusableContent,
    FolderSnapshot,
    open_folder_snapshot,
    read_embedding_digests,
    read_passages,
)
from stillroom.rag.storage.folder.segments import (
    VECTORS,
    check_file,
    get_segment_folder,
    list_segment_folders,
    open_segment,
)
from stillroom.rag.storage.folder.writer import FolderIndexWriter
from stillroom.rag.storage.protocol import IndexUpdate, IntegrityIssue, StoreSize, check_manifest
from stillroom.rag.storage.snapshots import (
    FOREVER,
    PASSAGE_BITS,
    Snapshot,
    digest_bucket,
    digest_document,
    digest_snapshot,
    get_bucket,
    update_manifest,
)
from stillroom.rag.types import (
    AuxiliaryVectors,
    DocumentEntry,
    DocumentMetadata,
    EmbeddingDigest,
    build_embedding_texts,
    digest_content,
    open_auxiliary_vectors,
)
from stillroom.records import Document, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder

__all__ = [
    "FolderStore",
    "RepairedAuxiliaryVectors",
    "check_folder",
    "repair_folder",
]


@dataclass(frozen=True, slots=True)
class FolderStore:
    """Store of an index in a folder.

    See ``stillroom.rag.storage.protocol.IndexStorage``.
    """

    folder: Path

    def read(self, selector: int | str | None = None, *, verify: bool) -> FolderSnapshot:
        """Open a snapshot, by default the newest.

        Raises:
            DataError: If there is no such snapshot, or it was removed.
            IntegrityError: If a file is missing, incomplete or changed.
        """
        return open_folder_snapshot(self.folder, selector, verify=verify)

    def hold(self) -> FolderReusableContent:
        """Open the newest snapshot to reuse its content."""
        return FolderReusableContent(open_folder_snapshot(self.folder, verify=False))

    def write(self) -> FolderIndexWriter:
        """Open the index for writing, and remove what an interrupted writer left.

        Raises:
            ResourceError: If another process writes it, or the disk is read-only.
            IntegrityError: If it is damaged.
        """
        return FolderIndexWriter.open(self.folder)

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""
        catalog = Catalog(self.folder)
        try:
            return catalog.snapshots()
        finally:
            catalog.close()

    def check(self) -> list[IntegrityIssue]:
        """Return all integrity issues; an empty list means that the index is intact."""
        return check_folder(self.folder)

    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Rebuild damaged derived files.

        Raises:
            ResourceError: If another process writes the index.
        """
        repair_folder(self.folder, issues, embedder)

    def measure(self) -> StoreSize:
        """Return the size of the folder."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        catalog = Catalog(self.folder)
        try:
            pieces = int(catalog.query("SELECT count(*) FROM segments")[0][0])
        finally:
            catalog.close()
        return StoreSize(size, pieces)

    def discard(self) -> None:
        """Do nothing: the store has no data outside the folder."""


def check_folder(folder: Path) -> list[IntegrityIssue]:
    """Return all integrity issues of an index's folder; an empty list means that it is intact.

    Raises:
        IntegrityError: If it is unfinished, or its catalog cannot be read at all.
    """
    catalog = Catalog(folder)
    try:
        issues = [*_check_pages(catalog)]
        if issues:  # nothing in such a catalog is reliable
            return issues
        issues += [*_check_contents(catalog), *_check_documents(catalog)]
        issues += [*_check_facts(catalog), *_check_digest(catalog)]
        issues += [*_check_segments(folder, catalog), *_check_orphans(folder, catalog)]
        return [*issues, *check_manifest(folder, catalog.find_snapshot())]
    finally:
        catalog.close()


def _make_catalog_issue(catalog: Catalog, problem: str) -> IntegrityIssue:
    return IntegrityIssue(catalog.path.name, problem, is_derived=False)


def _check_pages(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Run SQLite's check of pages and indexes."""
    try:
        with closing(connect_ledger(catalog.path)) as connection:
            rows = connection.execute("PRAGMA integrity_check(5)").fetchall()
    except sqlite3.Error as error:
        rows = [(str(error),)]
    for (message,) in rows:
        if message != "ok":
            yield _make_catalog_issue(catalog, str(message))


def _check_contents(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Recompute the spans, ids and digests of each document's content."""
    keys = catalog.query("SELECT key, path, mark, passages, fields FROM contents ORDER BY key")
    for key, path, mark, count, fields in keys:
        rows = catalog.query(
            "SELECT id, body FROM passages WHERE key >= ? AND key < ? ORDER BY key",
            (key << PASSAGE_BITS, (key + 1) << PASSAGE_BITS),
        )
        try:
            line = catalog.document(key)
            document = json.loads(line)
            text = document["text"]
            has_same_fields = derive_fields(document) == json.loads(fields)
            passages = [json.loads(body) for _, body in rows]
            has_same_text = all(
                text[passage["start"] : passage["end"]] == passage["text"] for passage in passages
            )
        except (StillroomError, zlib.error, ValueError, KeyError, TypeError) as error:
            yield _make_catalog_issue(catalog, f"{path}: cannot be read: {error}".split("\n", 1)[0])
            continue
        if not has_same_fields:
            yield _make_catalog_issue(catalog, f"{path}: has other fields than its document")
        if not has_same_text:
            yield _make_catalog_issue(catalog, f"{path}: a passage is not the document's own text")
        if len(rows) != count or [passage["id"] for passage in passages] != [
            name for name, _ in rows
        ]:
            yield _make_catalog_issue(catalog, f"{path}: has other passages than recorded")
        if digest_content(line, [bytes(body) for _, body in rows]) != mark:
            yield _make_catalog_issue(catalog, f"{path}: its bytes have changed")


def _check_documents(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Compare versions of documents with their contents and placements."""
    rows = catalog.query(
        "SELECT d.path, d.bucket, d.mark, d.tenant, d.labels, d.fields, c.path, c.mark, "
        "(SELECT count(*) FROM placements p WHERE p.document = d.key AND p.died >= d.died) "
        "FROM documents d LEFT JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    for path, bucket, mark, tenant, labels, fields, content_path, content, placements in rows:
        if content is None or content_path != path:
            yield _make_catalog_issue(catalog, f"{path}: has no content of its own")
            continue
        facts = DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels)))
        if digest_document(path, content, facts) != mark or get_bucket(path) != bucket:
            yield _make_catalog_issue(catalog, f"{path}: its fields, tenant or labels were changed")
        if placements != 1:
            yield _make_catalog_issue(catalog, f"{path}: has {placements} placements")


def _check_facts(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Compare the rows that filters and access conditions read with the recorded metadata."""
    rows = catalog.query(
        "SELECT d.key, d.path, d.labels, d.fields, c.fields FROM documents d "
        "JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    labels: dict[int, set[str]] = {}
    for key, label in catalog.query("SELECT document, label FROM labels"):
        labels.setdefault(key, set()).add(label)
    values: dict[int, list[Any]] = {}
    for key, *value in catalog.query("SELECT document, name, kind, value FROM fields"):
        values.setdefault(key, []).append(tuple(value))
    for key, path, recorded_labels, fields, derived in rows:
        merged = {**json.loads(derived), **json.loads(fields)}
        is_same = Counter(values.pop(key, [])) == Counter(list_values(merged))
        if labels.pop(key, set()) != set(json.loads(recorded_labels)) or not is_same:
            yield _make_catalog_issue(catalog, f"{path}: its rows of labels or fields were changed")
    if labels or values:
        yield _make_catalog_issue(catalog, "there are labels or fields without a document")


def _check_digest(catalog: Catalog) -> Iterator[IntegrityIssue]:
    """Recompute digest and counts of the newest snapshot."""
    latest = catalog.find_snapshot()
    marks: dict[int, list[str]] = {}
    passages = 0
    rows = catalog.query(
        "SELECT bucket, mark, passages FROM documents WHERE died = ? ORDER BY path", (FOREVER,)
    )
    for bucket, mark, count in rows:
        marks.setdefault(bucket, []).append(mark)
        passages += count
    buckets = {number: digest_bucket(bucket_marks) for number, bucket_marks in marks.items()}
    if digest_snapshot(catalog.description, buckets) != latest.digest:
        yield _make_catalog_issue(catalog, f"snapshot {latest.number} has another digest")
    if (latest.documents, latest.passages) != (len(rows), passages):
        yield _make_catalog_issue(
            catalog,
            f"snapshot {latest.number} counts {latest.documents} documents and "
            f"{latest.passages} passages, there are {len(rows)} and {passages}",
        )


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
            yield _make_catalog_issue(catalog, f"documents lie beyond segment {number}")


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


def repair_folder(
    folder: Path, issues: Sequence[IntegrityIssue], embedder: Embedder | None
) -> None:
    """Rebuild damaged derived files in an index's folder.

    Damaged vectors need the embedder, by default opened by its reference.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the catalog cannot be read, or the embedder is another one.
    """
    with FolderIndexWriter.open(folder) as writer:  # removes what an interrupted writer left
        for snapshot in writer.catalog.snapshots():
            write_snapshot_file(folder, snapshot.number, snapshot.digest)
        damaged = sorted({issue.segment for issue in issues if issue.segment})
        if damaged:
            _rewrite(writer, damaged, embedder)
        update_manifest(writer)


def _rewrite(writer: FolderIndexWriter, damaged: Sequence[int], embedder: Embedder | None) -> None:
    """Rewrite the documents of damaged segments, and remove older snapshots."""
    placeholders = ",".join("?" * len(damaged))
    rows = writer.catalog.query(
        "SELECT d.path, c.digest, d.passages, d.truncated, d.content, d.tenant, "  # noqa: S608
        "d.labels, "
        "d.fields, p.segment, p.start FROM documents d JOIN contents c ON c.key = d.content "
        "JOIN placements p ON p.document = d.key AND p.died = ? "
        f"WHERE d.died = ? AND p.segment IN ({placeholders}) ORDER BY d.path",
        (FOREVER, FOREVER, *damaged),
    )
    repairer = _VectorRepairer(writer, embedder)
    puts = [
        (
            _RepairedDocument(
                DocumentEntry(path, digest, count, truncated), content, segment, start, repairer
            ),
            DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels))),
        )
        for path, digest, count, truncated, content, tenant, labels, fields, segment, start in rows
    ]
    writer.commit(IndexUpdate(puts=puts), reason="repaired", keep=1)


@dataclass(frozen=True, slots=True)
class _RepairedDocument:
    """A document of a damaged segment, read from the catalog."""

    entry: DocumentEntry
    content: int
    segment: int
    start: int
    repairer: _VectorRepairer

    def document_line(self) -> bytes:
        return self.repairer.catalog.document(self.content)

    def passage_lines(self) -> list[bytes]:
        return read_passages(self.repairer.catalog, self.content)

    def marks(self) -> Sequence[EmbeddingDigest]:
        return read_embedding_digests(self.repairer.catalog, self.content)

    def vectors(self) -> NDArray[Any]:
        matrix = self.repairer.open_vectors(self.segment)
        if matrix is not None:
            return np.asarray(matrix[self.start : self.start + self.entry.passages])
        return self.repairer.embed(self)

    def extras(self) -> AuxiliaryVectors:
        return self.repairer.extras.of(self.segment, self.start, self.passage_lines())


class _VectorRepairer:
    """Restores vectors from an intact file or with the embedder."""

    def __init__(self, writer: FolderIndexWriter, embedder: Embedder | None) -> None:
        self.folder, self.description = writer.folder, writer.description
        self.catalog: Catalog = writer.catalog
        self._embedder = embedder
        self._files: dict[int, NDArray[Any] | None] = {}
        self.extras = RepairedAuxiliaryVectors(
            self.folder, self.catalog, self.description["settings"], self._open
        )

    def open_vectors(self, number: int) -> NDArray[Any] | None:
        """Return a segment's vectors if the file is intact, or None."""
        if number not in self._files:
            files = self.catalog.query("SELECT files FROM segments WHERE number = ?", (number,))
            size, digest = json.loads(files[0][0])[VECTORS]
            path = get_segment_folder(self.folder, number) / VECTORS
            try:
                check_file(path, (int(size), str(digest)), verify=True)
                self._files[number] = np.load(path, mmap_mode="r")
            except IntegrityError:
                self._files[number] = None
        return self._files[number]

    def embed(self, part: _RepairedDocument) -> NDArray[Any]:
        """Embed a document's passages again.

        Raises:
            IntegrityError: If the texts differ from those that were embedded.
        """
        embedder, settings = self._open(), self.description["settings"]
        passages = [Passage.from_json(json.loads(line)) for line in part.passage_lines()]
        passage_embedder = PassageEmbedder(embedder, str(settings["vectors"]), lambda: None)
        if settings.get("pooling") == "late":
            document = Document.from_json(json.loads(part.document_line()))
            digests, matrix = passage_embedder.embed_late(document, passages, part.entry.path)
        else:
            texts = build_embedding_texts(
                passages, embedder, with_headings=settings["with_headings"]
            )
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
        if self._embedder is None:
            from stillroom.models import open_embedder

            self._embedder = open_embedder(str(recorded["reference"]))
        if self._embedder.fingerprint != recorded["fingerprint"]:
            raise IntegrityError(
                f"the vectors were made by embedder {recorded['fingerprint']} "
                f"({recorded['reference']}), but {self._embedder.fingerprint} is given",
                code="rag.embedder-mismatch",
                where=str(self.folder),
                expected="the embedder that made the vectors: those of others are not comparable",
                next="restore that embedder, or build the index again with the new one",
            )
        return self._embedder


_AUXILIARY_FILES = {WEIGHTS, TOKENS}


class RepairedAuxiliaryVectors:
    """Restores the auxiliary vectors of documents of damaged segments."""

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        settings: Mapping[str, Any],
        open_embedder: Callable[[], Embedder],
    ) -> None:
        """Create a repairer for the index in ``folder``."""
        self._folder, self._catalog, self._settings = folder, catalog, settings
        self._open_embedder = open_embedder
        self._intact: dict[int, AuxiliaryVectors | None] = {}
        self._encoders: AuxiliaryEncoders | None = None

    def of(self, segment: int, start: int, lines: Sequence[bytes]) -> AuxiliaryVectors:
        """Return the auxiliary vectors of a document.

        Raises:
            IntegrityError: If the models differ from those of the index.
        """
        intact = self._open_intact(segment)
        if intact is not None:
            return intact.span(start, start + len(lines))
        settings = self._settings
        with_headings = settings["with_headings"] and settings.get("pooling") != "late"
        passages = [Passage.from_json(json.loads(line)) for line in lines]
        texts = build_embedding_texts(passages, self._open_embedder(), with_headings=with_headings)
        return self._open_encoders().encode(texts, lambda: None)

    def _open_intact(self, number: int) -> AuxiliaryVectors | None:
        """Return a segment's auxiliary vectors if all of their files are intact, or None."""
        if number not in self._intact:
            files = self._catalog.query("SELECT files FROM segments WHERE number = ?", (number,))
            segment_folder = get_segment_folder(self._folder, number)
            recorded = {
                name: entry
                for name, entry in json.loads(files[0][0]).items()
                if name in _AUXILIARY_FILES
            }
            try:
                for name, (size, digest) in recorded.items():
                    check_file(segment_folder / name, (int(size), str(digest)), verify=True)
                self._intact[number] = open_auxiliary_vectors(segment_folder, recorded)
            except IntegrityError:
                self._intact[number] = None
        return self._intact[number]

    def _open_encoders(self) -> AuxiliaryEncoders:
        if self._encoders is None:
            settings = self._settings
            encoder_settings = {
                name: {key: value for key, value in settings[name].items() if key != "fingerprint"}
                for name in ("sparse", "tokens")
                if settings.get(name)
            }
            sparse = (
                SparseSettings(**encoder_settings["sparse"])
                if "sparse" in encoder_settings
                else None
            )
            tokens = (
                LateInteractionSettings(**encoder_settings["tokens"])
                if "tokens" in encoder_settings
                else None
            )
            encoders = open_encoders(sparse, tokens, self._open_embedder())
            if encoders is None or encoders.settings != {
                name: settings[name] for name in encoder_settings
            }:
                raise IntegrityError(
                    "the models of sparse or late_interaction are not those that built the index",
                    code="rag.embedder-mismatch",
                    where=str(self._folder),
                    expected="the models that the index names",
                    next="restore them, or build the index again with the new ones",
                )
            self._encoders = encoders
        return self._encoders
