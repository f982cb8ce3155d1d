"""One document to passages and vectors, kept so that a killed job goes on where it was.

What a document becomes depends on its bytes and the settings alone. A text that was embedded once,
in this job or for the index before, is not embedded again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import Cancelled, DataError, StillroomError
from stillroom.jobs.files import full_disk_as_error
from stillroom.provenance import canonical_json, digest_bytes, digest_text
from stillroom.rag.cutting import cut_document
from stillroom.rag.embedding import TextVectors
from stillroom.rag.encoders import ExtraTexts, open_document_extras
from stillroom.rag.prefixes import passage_texts
from stillroom.rag.store.extras import Extras
from stillroom.rag.store.parts import Entry, Mark, to_line
from stillroom.records import Document, Origin, Passage
from stillroom.text.reading import parse_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.rag.contextual import ContextWriter
    from stillroom.rag.encoders import Encoders
    from stillroom.rag.recipe import RagRecipe
    from stillroom.rag.store.protocol import Holdings
    from stillroom.text.worker import Worker

__all__ = ["Failed", "Ingester", "Stored"]


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
    """A finished document in the job's scratch folder: its lines and its vectors.

    The first line holds the passages' marks, the second the document, the others the passages.
    """

    entry: Entry
    lines: Path
    matrix: Path
    beside: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All that was written of the document, in order."""
        more = sorted(self.beside.iterdir()) if self.beside and self.beside.is_dir() else []
        return [self.lines, self.matrix, *more]

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.lines.read_bytes().split(b"\n", 2)[1]

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return self.lines.read_bytes().split(b"\n")[2:-1]

    def marks(self) -> list[Mark]:
        """Return what is known of each passage's vector."""
        with self.lines.open("rb") as file:
            told = json.loads(file.readline())
        return [Mark(bytes.fromhex(embedded), bool(cut)) for embedded, cut in told]

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        matrix: NDArray[Any] = np.load(self.matrix)
        return matrix

    def extras(self) -> Extras:
        """Return what the passages are found by beside words and vectors."""
        return open_document_extras(self.beside) if self.beside is not None else Extras()


class Ingester:
    """Parses, cuts and embeds documents; remembers in the job's journal which are done."""

    def __init__(
        self,
        recipe: RagRecipe,
        root: Path,
        embedder: Embedder,
        worker: Worker,
        job: Job,
        held: Holdings | None = None,
        contexts: ContextWriter | None = None,
        encoders: Encoders | None = None,
    ) -> None:
        """Work on the documents below ``root``.

        Args:
            recipe: What the documents become.
            root: The folder that paths are relative to.
            embedder: What makes vectors.
            worker: What parses the risky formats.
            job: Whose journal and scratch folder are used.
            held: An index of the same embedder, whose vectors of equal texts are taken over.
            contexts: What writes where passages stand.
            encoders: What makes term weights and token vectors.
        """
        self.recipe, self.root, self.embedder, self.job = recipe, root, embedder, job
        self.worker, self.contexts = worker, contexts
        self.journal = job.journal("documents")
        self.folder = job.scratch / "documents"
        self.folder.mkdir(exist_ok=True)
        self.vectors = TextVectors(embedder, recipe.vectors, job.check_cancelled, held)
        self.extras: ExtraTexts | None = None
        if encoders is not None:
            self.extras = ExtraTexts(encoders, job.check_cancelled, held)
        self.parsed = 0

    @property
    def embedded(self) -> int:
        """How many texts were embedded in this sitting."""
        return self.vectors.embedded

    def recall(self, path: str, digest: str) -> Stored | Failed | None:
        """Return what an earlier sitting made of the same bytes, if that is whole."""
        told = self.journal.get(path)
        if not told or told["digest"] != digest:
            return None
        if "reason" in told:
            return Failed(path, told["code"], told["reason"])
        stored = self._place(Entry(path, digest, told["passages"], told["truncated"]))
        try:
            marks = [digest_bytes(file.read_bytes()) for file in stored.files]
        except FileNotFoundError:
            return None
        if marks != told["files"]:
            return None
        self._remember(stored)
        return stored

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
        for notice in document.metadata.get("notices", ()):
            self.job.say(f"{path}: {notice}")
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
        marks, matrix = self._embed_document(document, passages)
        truncated = sum(mark.is_truncated for mark in marks)
        stored = self._place(Entry(path, digest, len(passages), truncated))
        head = json.dumps([[mark.embedded.hex(), int(mark.is_truncated)] for mark in marks])
        rows = [document.to_json(), *(passage.to_json() for passage in passages)]
        with full_disk_as_error(self.folder):
            stored.lines.write_bytes(
                b"".join(line + b"\n" for line in [head.encode(), *map(to_line, rows)])
            )
            np.save(stored.matrix, matrix)
            if self.extras is not None and stored.beside is not None:
                shutil.rmtree(stored.beside, ignore_errors=True)
                stored.beside.mkdir()
                self.extras.write(self._texts(passages), marks, stored.beside)
        files = [digest_bytes(file.read_bytes()) for file in stored.files]
        self.journal.put(
            path,
            {
                "digest": digest,
                "passages": len(passages),
                "truncated": truncated,
                "files": files,
            },
        )
        self._remember(stored)
        return stored

    def _remember(self, stored: Stored) -> None:
        marks = stored.marks()
        self.vectors.remember(marks, stored.matrix)
        if self.extras is not None and stored.beside is not None:
            self.extras.remember(marks, stored.beside)

    def _texts(self, passages: Sequence[Passage]) -> list[str]:
        """Return what the embedder reads of passages; pooled late, that is their text alone."""
        with_headings = self.recipe.with_headings and self.recipe.pooling == "passage"
        return passage_texts(passages, self.embedder, with_headings=with_headings)

    def _embed_document(
        self, document: Document, passages: Sequence[Passage]
    ) -> tuple[list[Mark], NDArray[np.floating[Any]]]:
        if self.recipe.pooling == "late":
            return self.vectors.embed_late(document, passages, self.recipe.embedder)
        return self.vectors.embed(document.path, passages, self._texts(passages))

    def _place(self, entry: Entry) -> Stored:
        mark = digest_text(canonical_json([entry.path, entry.digest]))[:24]
        lines, matrix = self.folder / f"{mark}.jsonl", self.folder / f"{mark}.npy"
        return Stored(entry, lines, matrix, self.folder / mark if self.extras else None)
