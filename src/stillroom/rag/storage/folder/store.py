"""Folder store: the index in its own folder, with its integrity check and repair.

Every passage's text is cut from its document again, every digest recomputed. What is derived can be
made again from the ledger; damage to the ledger itself is only named.

The documents of a damaged segment are written to a new one. Vectors are taken from the old file
where that is whole, else their texts are embedded again and held against the digests that the
ledger keeps. Older snapshots that read the damaged segment go: theirs cannot be mended in place.

Taken from the old files where these are what was written, else made again by the models that the
index names.
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
from stillroom.rag.recipe import LateInteractionSettings, SparseSettings
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
    """The index whose own files lie in ``folder``.

    See ``stillroom.rag.storage.protocol.IndexStorage``.
    """

    folder: Path

    def read(self, wanted: int | str | None = None, *, verify: bool) -> FolderSnapshot:
        """Open a snapshot, by default the newest.

        Raises:
            DataError: If there is no such snapshot, or none any more.
            IntegrityError: If a file is missing, half-written or changed.
        """
        return open_folder_snapshot(self.folder, wanted, verify=verify)

    def hold(self) -> FolderReusableContent:
        """Open the newest snapshot for taking over what it holds."""
        return FolderReusableContent(open_folder_snapshot(self.folder, verify=False))

    def write(self) -> FolderIndexWriter:
        """Open for writing, and clear up after a writer that was killed.

        Raises:
            ResourceError: If another process writes it, or the disk cannot be written.
            IntegrityError: If it is damaged.
        """
        return FolderIndexWriter.open(self.folder)

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""
        ledger = Catalog(self.folder)
        try:
            return ledger.snapshots()
        finally:
            ledger.close()

    def check(self) -> list[IntegrityIssue]:
        """Return everything that does not agree; none means sound."""
        return check_folder(self.folder)

    def repair(self, found: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Make again what is derived and damaged.

        Raises:
            ResourceError: If another process writes the index.
        """
        repair_folder(self.folder, found, embedder)

    def measure(self) -> StoreSize:
        """Return how much the folder takes."""
        taken = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        ledger = Catalog(self.folder)
        try:
            pieces = int(ledger.query("SELECT count(*) FROM segments")[0][0])
        finally:
            ledger.close()
        return StoreSize(taken, pieces)

    def discard(self) -> None:
        """Remove what lies outside the folder: nothing."""


def check_folder(folder: Path) -> list[IntegrityIssue]:
    """Return everything in an index's folder that does not agree; none means sound.

    Args:
        folder: Of the artifact's own files.

    Raises:
        IntegrityError: If it is unfinished, or its ledger cannot be read at all.
    """
    ledger = Catalog(folder)
    try:
        found = [*_check_pages(ledger)]
        if found:  # nothing that such a ledger says can be relied on
            return found
        found += [*_check_contents(ledger), *_check_documents(ledger)]
        found += [*_check_facts(ledger), *_check_digest(ledger)]
        found += [*_check_segments(folder, ledger), *_check_orphans(folder, ledger)]
        return [*found, *check_manifest(folder, ledger.find_snapshot())]
    finally:
        ledger.close()


def _make_catalog_issue(ledger: Catalog, what: str) -> IntegrityIssue:
    return IntegrityIssue(ledger.path.name, what, is_derived=False)


def _check_pages(ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Let SQLite look at its pages and indexes."""
    try:
        with closing(connect_ledger(ledger.path)) as connection:
            rows = connection.execute("PRAGMA integrity_check(5)").fetchall()
    except sqlite3.Error as error:
        rows = [(str(error),)]
    for (said,) in rows:
        if said != "ok":
            yield _make_catalog_issue(ledger, str(said))


def _check_contents(ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Recompute what each document became: spans, ids, digests."""
    keys = ledger.query("SELECT key, path, mark, passages, fields FROM contents ORDER BY key")
    for key, path, mark, count, fields in keys:
        rows = ledger.query(
            "SELECT id, body FROM passages WHERE key >= ? AND key < ? ORDER BY key",
            (key << PASSAGE_BITS, (key + 1) << PASSAGE_BITS),
        )
        try:
            line = ledger.document(key)
            document = json.loads(line)
            text = document["text"]
            is_told = derive_fields(document) == json.loads(fields)
            passages = [json.loads(body) for _, body in rows]
            is_cut = all(text[one["start"] : one["end"]] == one["text"] for one in passages)
        except (StillroomError, zlib.error, ValueError, KeyError, TypeError) as error:
            yield _make_catalog_issue(ledger, f"{path}: cannot be read: {error}".split("\n", 1)[0])
            continue
        if not is_told:
            yield _make_catalog_issue(ledger, f"{path}: has other fields than its document gives")
        if not is_cut:
            yield _make_catalog_issue(ledger, f"{path}: a passage is not the document's own text")
        if len(rows) != count or [one["id"] for one in passages] != [name for name, _ in rows]:
            yield _make_catalog_issue(ledger, f"{path}: has other passages than it says")
        if digest_content(line, [bytes(body) for _, body in rows]) != mark:
            yield _make_catalog_issue(ledger, f"{path}: is not what was written")


def _check_documents(ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Hold versions of documents against what they point to."""
    rows = ledger.query(
        "SELECT d.path, d.bucket, d.mark, d.tenant, d.labels, d.fields, c.path, c.mark, "
        "(SELECT count(*) FROM placements p WHERE p.document = d.key AND p.died >= d.died) "
        "FROM documents d LEFT JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    for path, bucket, mark, tenant, labels, fields, named, content, placed in rows:
        if content is None or named != path:
            yield _make_catalog_issue(ledger, f"{path}: has no content of its own")
            continue
        facts = DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels)))
        if digest_document(path, content, facts) != mark or get_bucket(path) != bucket:
            yield _make_catalog_issue(ledger, f"{path}: its fields, tenant or labels were changed")
        if placed != 1:
            yield _make_catalog_issue(ledger, f"{path}: lies in {placed} places")


def _check_facts(ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Hold what filters and access read against what each document's mark covers."""
    rows = ledger.query(
        "SELECT d.key, d.path, d.labels, d.fields, c.fields FROM documents d "
        "JOIN contents c ON c.key = d.content ORDER BY d.key"
    )
    labels: dict[int, set[str]] = {}
    for key, label in ledger.query("SELECT document, label FROM labels"):
        labels.setdefault(key, set()).add(label)
    values: dict[int, list[Any]] = {}
    for key, *value in ledger.query("SELECT document, name, kind, value FROM fields"):
        values.setdefault(key, []).append(tuple(value))
    for key, path, own, fields, derived in rows:
        merged = {**json.loads(derived), **json.loads(fields)}
        is_same = Counter(values.pop(key, [])) == Counter(list_values(merged))
        if labels.pop(key, set()) != set(json.loads(own)) or not is_same:
            yield _make_catalog_issue(ledger, f"{path}: its rows of labels or fields were changed")
    if labels or values:
        yield _make_catalog_issue(ledger, "there are labels or fields of no document")


def _check_digest(ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Recompute digest and counts of the newest snapshot."""
    latest = ledger.find_snapshot()
    marks: dict[int, list[str]] = {}
    passages = 0
    rows = ledger.query(
        "SELECT bucket, mark, passages FROM documents WHERE died = ? ORDER BY path", (FOREVER,)
    )
    for bucket, mark, count in rows:
        marks.setdefault(bucket, []).append(mark)
        passages += count
    buckets = {number: digest_bucket(own) for number, own in marks.items()}
    if digest_snapshot(ledger.description, buckets) != latest.digest:
        yield _make_catalog_issue(ledger, f"snapshot {latest.number} has another digest")
    if (latest.documents, latest.passages) != (len(rows), passages):
        yield _make_catalog_issue(
            ledger,
            f"snapshot {latest.number} counts {latest.documents} documents and "
            f"{latest.passages} passages, there are {len(rows)} and {passages}",
        )


def _check_segments(folder: Path, ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Open every segment that a snapshot names, with digests."""
    seen: set[int] = set()
    for snapshot in ledger.snapshots():
        for entry in ledger.segments(snapshot.number):
            if entry.number in seen:
                continue
            seen.add(entry.number)
            try:
                open_segment(folder, entry, verify=True)
            except IntegrityError as error:
                what = error.problems[0].what.removeprefix("the index is damaged: ")
                place = get_segment_folder(folder, entry.number).relative_to(folder).as_posix()
                yield IntegrityIssue(place, what, is_derived=True, segment=entry.number)
    rows = ledger.query(
        "SELECT p.segment, max(p.start + d.passages), s.rows FROM placements p "
        "JOIN documents d ON d.key = p.document LEFT JOIN segments s ON s.number = p.segment "
        "WHERE p.died > (SELECT min(number) FROM snapshots) GROUP BY p.segment"
    )
    for number, end, size in rows:
        if size is None or end > size:
            yield _make_catalog_issue(ledger, f"documents lie beyond segment {number}")


def _check_orphans(folder: Path, ledger: Catalog) -> Iterator[IntegrityIssue]:
    """Name files that no snapshot needs, and snapshots without their file."""
    named = {get_segment_folder(folder, n) for (n,) in ledger.query("SELECT number FROM segments")}
    for path in list_segment_folders(folder):
        if path not in named:
            yield IntegrityIssue(path.relative_to(folder).as_posix(), "no snapshot names it", True)
    files = {get_snapshot_file(folder, one.number) for one in ledger.snapshots()}
    place = folder / SNAPSHOTS
    there = set(place.iterdir()) if place.is_dir() else set()
    for path in sorted(files - there):
        yield IntegrityIssue(path.relative_to(folder).as_posix(), "it is missing", True)
    for path in sorted(there - files):
        yield IntegrityIssue(
            path.relative_to(folder).as_posix(), "no snapshot is so numbered", True
        )
    if ledger.query("SELECT 1 FROM settings WHERE name = 'staged'"):
        yield IntegrityIssue(ledger.path.name, "a writer was killed and left passages unseen", True)


def repair_folder(folder: Path, found: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
    """Make again what is derived in an index's folder.

    Args:
        folder: Of the artifact's own files.
        found: What is damaged.
        embedder: What makes vectors that are damaged; by default the one that the index names.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the ledger cannot be read, or the embedder is another one.
    """
    with FolderIndexWriter.open(folder) as writer:  # clears up after a writer that was killed
        for snapshot in writer.ledger.snapshots():
            write_snapshot_file(folder, snapshot.number, snapshot.digest)
        damaged = sorted({one.segment for one in found if one.segment})
        if damaged:
            _rewrite(writer, damaged, embedder)
        update_manifest(writer)


def _rewrite(writer: FolderIndexWriter, damaged: Sequence[int], embedder: Embedder | None) -> None:
    """Write the documents of damaged segments anew, and let older snapshots go."""
    marks = ",".join("?" * len(damaged))
    rows = writer.ledger.query(
        "SELECT d.path, c.digest, d.passages, d.truncated, d.content, d.tenant, "  # noqa: S608
        "d.labels, "
        "d.fields, p.segment, p.start FROM documents d JOIN contents c ON c.key = d.content "
        "JOIN placements p ON p.document = d.key AND p.died = ? "
        f"WHERE d.died = ? AND p.segment IN ({marks}) ORDER BY d.path",
        (FOREVER, FOREVER, *damaged),
    )
    maker = _VectorRepairer(writer, embedder)
    puts = [
        (
            _RepairedDocument(
                DocumentEntry(path, digest, count, cut), content, segment, start, maker
            ),
            DocumentMetadata(json.loads(fields), tenant, tuple(json.loads(labels))),
        )
        for path, digest, count, cut, content, tenant, labels, fields, segment, start in rows
    ]
    writer.commit(IndexUpdate(puts=puts), reason="repaired", keep=1)


@dataclass(frozen=True, slots=True)
class _RepairedDocument:
    """A document of a damaged segment, from the ledger."""

    entry: DocumentEntry
    content: int
    segment: int
    start: int
    maker: _VectorRepairer

    def document_line(self) -> bytes:
        return self.maker.ledger.document(self.content)

    def passage_lines(self) -> list[bytes]:
        return read_passages(self.maker.ledger, self.content)

    def marks(self) -> Sequence[EmbeddingDigest]:
        return read_embedding_digests(self.maker.ledger, self.content)

    def vectors(self) -> NDArray[Any]:
        matrix = self.maker.open_vectors(self.segment)
        if matrix is not None:
            return np.asarray(matrix[self.start : self.start + self.entry.passages])
        return self.maker.embed(self)

    def extras(self) -> AuxiliaryVectors:
        return self.maker.extras.of(self.segment, self.start, self.passage_lines())


class _VectorRepairer:
    """Gives vectors: from a file that is whole, or from the embedder."""

    def __init__(self, writer: FolderIndexWriter, embedder: Embedder | None) -> None:
        self.folder, self.description = writer.folder, writer.description
        self.ledger: Catalog = writer.ledger
        self._embedder = embedder
        self._files: dict[int, NDArray[Any] | None] = {}
        self.extras = RepairedAuxiliaryVectors(
            self.folder, self.ledger, self.description["settings"], self._open
        )

    def open_vectors(self, number: int) -> NDArray[Any] | None:
        """Return a segment's vectors where the file is what was written."""
        if number not in self._files:
            files = self.ledger.query("SELECT files FROM segments WHERE number = ?", (number,))
            size, digest = json.loads(files[0][0])[VECTORS]
            path = get_segment_folder(self.folder, number) / VECTORS
            try:
                check_file(path, (int(size), str(digest)), verify=True)
                self._files[number] = np.load(path, mmap_mode="r")
            except IntegrityError:
                self._files[number] = None
        return self._files[number]

    def embed(self, part: _RepairedDocument) -> NDArray[Any]:
        """Embed a document's passages as they were.

        Raises:
            IntegrityError: If other texts than before would be embedded.
        """
        embedder, settings = self._open(), self.description["settings"]
        passages = [Passage.from_json(json.loads(line)) for line in part.passage_lines()]
        vectors = PassageEmbedder(embedder, str(settings["vectors"]), lambda: None)
        if settings.get("pooling") == "late":
            document = Document.from_json(json.loads(part.document_line()))
            made, matrix = vectors.embed_late(document, passages, part.entry.path)
        else:
            texts = build_embedding_texts(
                passages, embedder, with_headings=settings["with_headings"]
            )
            made, matrix = vectors.embed(part.entry.path, passages, texts)
        if [one.embedded for one in made] != [one.embedded for one in part.marks()]:
            raise IntegrityError(
                f"other texts than before would be embedded of {part.entry.path}",
                code="rag.other-preparation",
                where=str(self.folder),
                expected="the version that built the index",
                next="build the index again with --overwrite",
            )
        return matrix

    def _open(self) -> Embedder:
        told = self.description["embedder"]
        if self._embedder is None:
            from stillroom.models import open_embedder

            self._embedder = open_embedder(str(told["reference"]))
        if self._embedder.fingerprint != told["fingerprint"]:
            raise IntegrityError(
                f"the vectors were made by embedder {told['fingerprint']} ({told['reference']}), "
                f"but {self._embedder.fingerprint} is given",
                code="rag.embedder-mismatch",
                where=str(self.folder),
                expected="the embedder that made the vectors: others do not compare",
                next="restore that embedder, or build the index again with the new one",
            )
        return self._embedder


_AUXILIARY_FILES = {WEIGHTS, TOKENS}


class RepairedAuxiliaryVectors:
    """Gives the extras of documents of damaged segments."""

    def __init__(
        self,
        folder: Path,
        ledger: Catalog,
        settings: Mapping[str, Any],
        open_embedder: Callable[[], Embedder],
    ) -> None:
        """Mend the index in ``folder``.

        Args:
            folder: The index's.
            ledger: Of the same folder.
            settings: What shaped the index.
            open_embedder: Gives the embedder that made its vectors.
        """
        self._folder, self._ledger, self._settings = folder, ledger, settings
        self._open_embedder = open_embedder
        self._whole: dict[int, AuxiliaryVectors | None] = {}
        self._encoders: AuxiliaryEncoders | None = None

    def of(self, segment: int, start: int, lines: Sequence[bytes]) -> AuxiliaryVectors:
        """Return the extras of a document.

        Args:
            segment: Where it lay.
            start: Its first row there.
            lines: Its passages as JSON.

        Raises:
            IntegrityError: If the models are others than those that made them.
        """
        whole = self._open_whole(segment)
        if whole is not None:
            return whole.span(start, start + len(lines))
        settings = self._settings
        with_headings = settings["with_headings"] and settings.get("pooling") != "late"
        passages = [Passage.from_json(json.loads(line)) for line in lines]
        texts = build_embedding_texts(passages, self._open_embedder(), with_headings=with_headings)
        return self._open_encoders().encode(texts, lambda: None)

    def _open_whole(self, number: int) -> AuxiliaryVectors | None:
        """Return a segment's extras where all of their files are what was written."""
        if number not in self._whole:
            files = self._ledger.query("SELECT files FROM segments WHERE number = ?", (number,))
            place = get_segment_folder(self._folder, number)
            told = {
                name: one
                for name, one in json.loads(files[0][0]).items()
                if name in _AUXILIARY_FILES
            }
            try:
                for name, (size, digest) in told.items():
                    check_file(place / name, (int(size), str(digest)), verify=True)
                self._whole[number] = open_auxiliary_vectors(place, told)
            except IntegrityError:
                self._whole[number] = None
        return self._whole[number]

    def _open_encoders(self) -> AuxiliaryEncoders:
        if self._encoders is None:
            told = self._settings
            own = {
                name: {key: one for key, one in told[name].items() if key != "fingerprint"}
                for name in ("sparse", "tokens")
                if told.get(name)
            }
            sparse = SparseSettings(**own["sparse"]) if "sparse" in own else None
            tokens = LateInteractionSettings(**own["tokens"]) if "tokens" in own else None
            encoders = open_encoders(sparse, tokens, self._open_embedder())
            if encoders is None or encoders.settings != {name: told[name] for name in own}:
                raise IntegrityError(
                    "the models of sparse or tokens are not those that made the index",
                    code="rag.embedder-mismatch",
                    where=str(self._folder),
                    expected="the models that the index names",
                    next="restore them, or build the index again with the new ones",
                )
            self._encoders = encoders
        return self._encoders
