"""One document to passages and vectors, kept so that a killed job goes on where it was.

What a document becomes depends on its bytes and the settings alone. A text that was embedded once,
in this job or for the index before, is not embedded again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
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
from stillroom.rag.preparing import (
    Prepared,
    Preparing,
    Refused,
    embed_document,
    examine_prepared,
    read_document,
    texts_of,
)
from stillroom.rag.store.extras import Extras
from stillroom.rag.store.parts import Entry, Mark, to_line
from stillroom.records import Document, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.rag.contextual import ContextWriter
    from stillroom.rag.encoders import Encoders
    from stillroom.rag.listing import Found
    from stillroom.rag.recipe import RagRecipe
    from stillroom.rag.store.protocol import Holdings
    from stillroom.text.worker import Worker

__all__ = ["Failed", "Ingester", "Stored"]

_BLOCK = 8
"""Documents of one task."""


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

    def ingest_all(self, found: Sequence[Found]) -> Iterator[Stored | Failed]:
        """Parse, cut and embed documents, here or on the engine's workers, in order.

        Raises:
            Cancelled: If the user stops the job.
            BackendError: If the embedder fails.
            ResourceError: If the disk is full.
        """
        engine = self.job.engine
        if engine.is_remote and self.contexts is not None:
            self.job.say("documents are prepared here: with 'context' a model is asked of each")
        if not engine.is_remote or self.contexts is not None:
            for one in found:
                self.job.check_cancelled()
                yield self.ingest(one.file, one.path, one.digest)
            return
        asked = [(one.file.absolute(), one.path, one.digest) for one in found]
        work = Preparing.of(self.recipe, self.root)
        made = engine.map(work, asked, block_size=_BLOCK, pause=self.job.check_cancelled)
        for place, outcome in zip(asked, made, strict=True):
            yield self._accept(outcome, *place)

    def ingest(self, file: Path, path: str, digest: str) -> Stored | Failed:
        """Parse, cut and embed one document, and journal what came of it.

        Raises:
            Cancelled: If the user stops the job; the document is then done again.
            BackendError: If the embedder fails.
            ResourceError: If the disk is full.
        """
        try:
            document = read_document(self.recipe, self.root, (file, path, digest), self.worker)
        except Cancelled:
            raise
        except StillroomError as error:
            return self._fail(path, digest, error)
        self._note(document)
        try:
            passages = self._cut(document)
            marks, matrix = embed_document(self.vectors, self.recipe, document, passages)
            return self._store(Prepared(document, tuple(passages), tuple(marks), matrix), digest)
        except DataError as error:
            return self._fail(path, digest, error)

    def _accept(
        self, prepared: Prepared | Refused, file: Path, path: str, digest: str
    ) -> Stored | Failed:
        """Journal what a worker made of a document, as if it had been made here."""
        try:
            made = examine_prepared(prepared, file)
        except Cancelled:
            raise
        except StillroomError as error:
            return self._fail(path, digest, error)
        if made.document is not None:
            self._note(made.document)
        if isinstance(made, Refused):
            return self._fail(path, digest, made.error)
        if not made.passages:
            return self._fail(path, digest, _no_text(path))
        self.vectors.embedded += len({mark.embedded for mark in made.marks})
        return self._store(made, digest)

    def _note(self, document: Document) -> None:
        self.parsed += 1
        for notice in document.metadata.get("notices", ()):
            self.job.say(f"{document.path}: {notice}")

    def _fail(self, path: str, digest: str, error: StillroomError) -> Failed:
        failed = Failed.of(path, error)
        self.journal.put(path, {"digest": digest, "code": failed.code, "reason": failed.reason})
        return failed

    def _cut(self, document: Document) -> Sequence[Passage]:
        passages = cut_document(
            document, self.recipe.chunker, self.embedder, self.job.check_cancelled
        )
        if not passages:
            raise _no_text(document.path)
        return passages if self.contexts is None else self.contexts.situate(document, passages)

    def _store(self, made: Prepared, digest: str) -> Stored:
        path, passages = made.document.path, made.passages
        truncated = sum(mark.is_truncated for mark in made.marks)
        stored = self._place(Entry(path, digest, len(passages), truncated))
        head = json.dumps([[mark.embedded.hex(), int(mark.is_truncated)] for mark in made.marks])
        rows = [made.document.to_json(), *(passage.to_json() for passage in passages)]
        with full_disk_as_error(self.folder):
            stored.lines.write_bytes(
                b"".join(line + b"\n" for line in [head.encode(), *map(to_line, rows)])
            )
            np.save(stored.matrix, made.matrix)
            if self.extras is not None and stored.beside is not None:
                shutil.rmtree(stored.beside, ignore_errors=True)
                stored.beside.mkdir()
                texts = texts_of(self.recipe, self.embedder, passages)
                self.extras.write(texts, made.marks, stored.beside)
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

    def _place(self, entry: Entry) -> Stored:
        mark = digest_text(canonical_json([entry.path, entry.digest]))[:24]
        lines, matrix = self.folder / f"{mark}.jsonl", self.folder / f"{mark}.npy"
        return Stored(entry, lines, matrix, self.folder / mark if self.extras else None)


def _no_text(path: str) -> DataError:
    return DataError(
        f"{path} holds no text",
        code="rag.no-text",
        where=path,
        expected="at least one passage",
        next="remove the file, or give a version of it that holds text",
    )
