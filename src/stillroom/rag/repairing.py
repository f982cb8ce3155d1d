"""Repair: what is derived in an index is made again from its ledger.

The documents of a damaged segment are written to a new one. Vectors are taken from the old file
where that is whole, else their texts are embedded again and held against the digests that the
ledger keeps. Older snapshots that read the damaged segment go: theirs cannot be mended in place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import IntegrityError
from stillroom.provenance import find_output
from stillroom.rag.embedding import TextVectors
from stillroom.rag.mending import MendedExtras
from stillroom.rag.prefixes import passage_texts
from stillroom.rag.store.checking import Damage
from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.locking import write_snapshot_file
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.store.parts import Entry, Facts, Mark
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.recalled import read_marks, read_passages
from stillroom.rag.store.schema import FOREVER
from stillroom.rag.store.segments import VECTORS, check_file, segment_folder
from stillroom.rag.store.writer import Writer
from stillroom.rag.storing import open_store
from stillroom.records import Document, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.store.extras import Extras

__all__ = ["repair_folder", "repair_index"]


def repair_index(index: Path, *, embedder: Embedder | None = None) -> list[Damage]:
    """Make again what is derived in an index and damaged; return what was found before.

    Args:
        index: The artifact's folder or its output.
        embedder: What makes vectors that are damaged; by default the one that the index names.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the ledger cannot be read, or the embedder is another one.
    """
    store = open_store(find_output(index, "index"))
    found = store.check()
    if found:
        store.repair(found, embedder)
    return found


def repair_folder(folder: Path, found: Sequence[Damage], embedder: Embedder | None) -> None:
    """Make again what is derived in an index's folder.

    Args:
        folder: Of the artifact's own files.
        found: What is damaged.
        embedder: What makes vectors that are damaged; by default the one that the index names.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the ledger cannot be read, or the embedder is another one.
    """
    with Writer.open(folder) as writer:  # clears up after a writer that was killed
        for snapshot in writer.ledger.snapshots():
            write_snapshot_file(folder, snapshot.number, snapshot.digest)
        damaged = sorted({one.segment for one in found if one.segment})
        if damaged:
            _rewrite(writer, damaged, embedder)
        renew_manifest(writer)


def _rewrite(writer: Writer, damaged: Sequence[int], embedder: Embedder | None) -> None:
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
    maker = _Maker(writer, embedder)
    puts = [
        (
            _Mended(Entry(path, digest, count, cut), content, segment, start, maker),
            Facts(json.loads(fields), tenant, tuple(json.loads(labels))),
        )
        for path, digest, count, cut, content, tenant, labels, fields, segment, start in rows
    ]
    writer.commit(Change(puts=puts), reason="repaired", keep=1)


@dataclass(frozen=True, slots=True)
class _Mended:
    """A document of a damaged segment, from the ledger."""

    entry: Entry
    content: int
    segment: int
    start: int
    maker: _Maker

    def document_line(self) -> bytes:
        return self.maker.ledger.document(self.content)

    def passage_lines(self) -> list[bytes]:
        return read_passages(self.maker.ledger, self.content)

    def marks(self) -> Sequence[Mark]:
        return read_marks(self.maker.ledger, self.content)

    def vectors(self) -> NDArray[Any]:
        matrix = self.maker.open_vectors(self.segment)
        if matrix is not None:
            return np.asarray(matrix[self.start : self.start + self.entry.passages])
        return self.maker.embed(self)

    def extras(self) -> Extras:
        return self.maker.extras.of(self.segment, self.start, self.passage_lines())


class _Maker:
    """Gives vectors: from a file that is whole, or from the embedder."""

    def __init__(self, writer: Writer, embedder: Embedder | None) -> None:
        self.folder, self.description = writer.folder, writer.description
        self.ledger: Ledger = writer.ledger
        self._embedder = embedder
        self._files: dict[int, NDArray[Any] | None] = {}
        self.extras = MendedExtras(
            self.folder, self.ledger, self.description["settings"], self._open
        )

    def open_vectors(self, number: int) -> NDArray[Any] | None:
        """Return a segment's vectors where the file is what was written."""
        if number not in self._files:
            files = self.ledger.query("SELECT files FROM segments WHERE number = ?", (number,))
            size, digest = json.loads(files[0][0])[VECTORS]
            path = segment_folder(self.folder, number) / VECTORS
            try:
                check_file(path, (int(size), str(digest)), verify=True)
                self._files[number] = np.load(path, mmap_mode="r")
            except IntegrityError:
                self._files[number] = None
        return self._files[number]

    def embed(self, part: _Mended) -> NDArray[Any]:
        """Embed a document's passages as they were.

        Raises:
            IntegrityError: If other texts than before would be embedded.
        """
        embedder, settings = self._open(), self.description["settings"]
        passages = [Passage.from_json(json.loads(line)) for line in part.passage_lines()]
        vectors = TextVectors(embedder, str(settings["vectors"]), lambda: None)
        if settings.get("pooling") == "late":
            document = Document.from_json(json.loads(part.document_line()))
            made, matrix = vectors.embed_late(document, passages, part.entry.path)
        else:
            texts = passage_texts(passages, embedder, with_headings=settings["with_headings"])
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
