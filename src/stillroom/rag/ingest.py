"""One document to passages and vectors, kept so that a killed job goes on where it was.

What a document becomes depends on its bytes and the settings alone: texts are embedded in batches
of that document only, never together with another's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stillroom.errors import Cancelled, DataError, StillroomError
from stillroom.jobs.files import full_disk_as_error
from stillroom.provenance import canonical_json, digest_bytes, digest_text
from stillroom.rag.cutting import cut_document
from stillroom.rag.layout import Entry
from stillroom.rag.pooling import embed_late
from stillroom.rag.prefixes import passage_texts
from stillroom.records import Document, Origin, Passage
from stillroom.text.reading import parse_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.rag.contextual import ContextWriter
    from stillroom.rag.recipe import RagRecipe
    from stillroom.text.worker import Worker

__all__ = ["Failed", "Ingester", "Part", "Stored"]

_BATCH = 32


class Part(Protocol):
    """One document's share of an index, ready to be written."""

    @property
    def entry(self) -> Entry:
        """What the index says of the document."""

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A document that could not be used, and why."""

    path: str
    code: str
    reason: str

    @classmethod
    def of(cls, path: str, error: StillroomError) -> Failed:
        """Say why a document could not be used, and what would help."""
        problem = error.problems[0]
        reason = f"{problem.what}; next: {problem.next}" if problem.next else problem.what
        return cls(path, problem.code, reason)

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values."""
        return {"path": self.path, "code": self.code, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished document in the job's scratch folder: its lines and its vectors."""

    entry: Entry
    lines: Path
    matrix: Path

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.lines.read_bytes().split(b"\n", 1)[0]

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return self.lines.read_bytes().split(b"\n")[1:-1]

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        matrix: NDArray[Any] = np.load(self.matrix)
        return matrix


class Ingester:
    """Parses, cuts and embeds documents; remembers in the job's journal which are done."""

    def __init__(
        self,
        recipe: RagRecipe,
        root: Path,
        embedder: Embedder,
        worker: Worker,
        job: Job,
        contexts: ContextWriter | None = None,
    ) -> None:
        """Work on the documents below ``root``; ``worker`` parses the risky formats."""
        self.recipe, self.root, self.embedder, self.job = recipe, root, embedder, job
        self.worker, self.contexts = worker, contexts
        self.journal = job.journal("documents")
        self.folder = job.scratch / "documents"
        self.folder.mkdir(exist_ok=True)
        self.parsed = self.embedded = 0

    def recall(self, path: str, digest: str) -> Stored | Failed | None:
        """Return what an earlier sitting made of the same bytes, if that is whole."""
        told = self.journal.get(path)
        if not told or told["digest"] != digest:
            return None
        if "reason" in told:
            return Failed(path, told["code"], told["reason"])
        stored = self._place(Entry(path, digest, told["passages"], told["truncated"]))
        try:
            marks = [digest_bytes(file.read_bytes()) for file in (stored.lines, stored.matrix)]
        except FileNotFoundError:
            return None
        return stored if marks == told["files"] else None

    def ingest(self, file: Path, path: str, digest: str) -> Stored | Failed:
        """Parse, cut and embed one document, and journal what came of it.

        Raises:
            Cancelled: If the user stops the job; the document is then done again.
            BackendError: If the embedder fails.
            ResourceError: If the disk is full.
        """
        try:
            document = self._parse(file, path, digest)
        except Cancelled:
            raise
        except StillroomError as error:
            return self._fail(path, digest, error)
        self.parsed += 1
        try:
            return self._store(document, path, digest)
        except DataError as error:
            return self._fail(path, digest, error)

    def _fail(self, path: str, digest: str, error: StillroomError) -> Failed:
        failed = Failed.of(path, error)
        self.journal.put(path, {"digest": digest, "code": failed.code, "reason": failed.reason})
        return failed

    def _parse(self, file: Path, path: str, digest: str) -> Document:
        document = parse_file(
            file,
            root=self.root,
            limits=self.recipe.limits,
            origin=Origin(self.recipe.origin.kind, (), self.recipe.origin.license),
            worker=self.worker,
        )
        if document.path != path or document.digest != digest:
            raise DataError(
                f"{path} changed while it was read",
                code="rag.document-changed",
                where=path,
                expected="documents that stay as they are while the job runs",
                next="run the job again",
            )
        return document

    def _store(self, document: Document, path: str, digest: str) -> Stored:
        before = self.embedder.truncated
        passages = cut_document(
            document, self.recipe.chunker, self.embedder, self.job.check_cancelled
        )
        if not passages:
            raise DataError(
                f"{path} holds no text",
                code="rag.no-text",
                where=path,
                expected="at least one passage",
                next="remove the file, or give a version of it that holds text",
            )
        if self.contexts is not None:
            passages = self.contexts.situate(document, passages)
        matrix = self._embed_document(document, passages)
        truncated = self.embedder.truncated - before
        stored = self._place(Entry(path, digest, len(passages), truncated))
        rows = [document.to_json(), *(passage.to_json() for passage in passages)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with full_disk_as_error(self.folder):
            stored.lines.write_bytes(text.encode("utf-8", "surrogatepass"))
            np.save(stored.matrix, matrix)
        marks = [digest_bytes(file.read_bytes()) for file in (stored.lines, stored.matrix)]
        self.journal.put(
            path,
            {
                "digest": digest,
                "passages": len(passages),
                "truncated": truncated,
                "files": marks,
            },
        )
        return stored

    def _embed_document(
        self, document: Document, passages: Sequence[Passage]
    ) -> NDArray[np.floating[Any]]:
        if self.recipe.pooling == "late":
            rows = embed_late(document, passages, self.embedder, self.recipe.embedder)
            self._check_vectors(document.path, passages, rows)
            self.embedded += len(rows)
            return np.asarray(rows, dtype=self.recipe.vectors)
        texts = passage_texts(passages, self.embedder, with_headings=self.recipe.with_headings)
        return self._embed(document.path, passages, texts)

    def _embed(
        self, path: str, passages: Sequence[Passage], texts: Sequence[str]
    ) -> NDArray[np.floating[Any]]:
        blocks = []
        for start in range(0, len(texts), _BATCH):
            self.job.check_cancelled()
            block = self.embedder.embed(texts[start : start + _BATCH], kind="passage")
            self._check_vectors(path, passages[start : start + _BATCH], block)
            blocks.append(np.asarray(block, dtype=self.recipe.vectors))
            self.embedded += len(block)
        return np.concatenate(blocks)

    def _check_vectors(
        self, path: str, passages: Sequence[Passage], block: NDArray[np.float32]
    ) -> None:
        """Refuse what cannot be compared: another width, zeros, infinities, no numbers."""
        if block.shape != (len(passages), self.embedder.dimensions):
            raise DataError(
                f"the embedder gave an array of shape {block.shape}",
                code="rag.bad-vector",
                where=path,
                expected=f"({len(passages)}, {self.embedder.dimensions})",
                next="check the embedder",
            )
        norms = np.linalg.norm(block.astype(np.float64), axis=1)
        bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-6))
        if len(bad):
            passage = passages[int(bad[0])]
            raise DataError(
                f"the vector of {path}, characters {passage.start}-{passage.end}, "
                "is zero or not a number",
                code="rag.bad-vector",
                where=path,
                expected="vectors with a direction",
                next="remove the document, or choose another embedder",
            )

    def _place(self, entry: Entry) -> Stored:
        mark = digest_text(canonical_json([entry.path, entry.digest]))[:24]
        return Stored(entry, self.folder / f"{mark}.jsonl", self.folder / f"{mark}.npy")
