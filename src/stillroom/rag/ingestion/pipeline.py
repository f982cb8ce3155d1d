"""Ingestion pipeline: document discovery, and journaled, resumable preparation.

What a document becomes depends on its bytes and the settings alone. A text that was embedded once,
in this job or for the index before, is not embedded again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom import __version__
from stillroom.errors import Cancelled, DataError, Problem, StillroomError
from stillroom.jobs.files import full_disk_as_error
from stillroom.objects import find_address, resolve_local
from stillroom.provenance import (
    Parent,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    digest_text,
    find_output,
)
from stillroom.rag.analysis.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.embedding.passages import (
    AuxiliaryVectorCache,
    PassageEmbedder,
    open_document_auxiliary_vectors,
)
from stillroom.rag.ingestion.preparation import (
    EmbeddedDocument,
    IngestTask,
    RejectedDocument,
    chunk_document,
    embed_document,
    examine_embedded,
    get_embedder_inputs,
    read_document,
)
from stillroom.rag.storage.filters import read_metadata
from stillroom.rag.storage.snapshots import IndexConfig
from stillroom.rag.types import (
    AuxiliaryVectors,
    DocumentEntry,
    DocumentMetadata,
    EmbeddingDigest,
    encode_json_line,
)
from stillroom.records import Document, Passage
from stillroom.text.reader import FolderScan, scan_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job
    from stillroom.models import Embedder
    from stillroom.rag.embedding.passages import AuxiliaryEncoders
    from stillroom.rag.ingestion.preparation import ContextWriter
    from stillroom.rag.recipe import RagRecipe
    from stillroom.rag.storage.protocol import ReusableContent
    from stillroom.text.parser_process import ParserProcess

__all__ = [
    "DocumentFile",
    "FailedDocument",
    "IngestPipeline",
    "ScratchDocument",
    "build_documents_parent",
    "build_embedder_parent",
    "build_index_config",
    "check_failures",
    "digest_files",
    "discover_documents",
    "read_document_metadata",
]


_BLOCK_DOCUMENTS = 8


"""Documents of one task."""


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document that could not be used, and why."""

    path: str
    code: str
    reason: str

    @classmethod
    def of(cls, path: str, error: StillroomError) -> FailedDocument:
        """Say why a document could not be used, and what would help."""
        problem = error.problems[0]
        reason = f"{problem.what}; next: {problem.next}" if problem.next else problem.what
        return cls(path, problem.code, reason)

    def to_json(self) -> dict[str, str]:
        """Return plain JSON values."""
        return {"path": self.path, "code": self.code, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ScratchDocument:
    """A finished document in the job's scratch folder: its lines and its vectors.

    The first line holds the passages' marks, the second the document, the others the passages.
    """

    entry: DocumentEntry
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

    def marks(self) -> list[EmbeddingDigest]:
        """Return what is known of each passage's vector."""
        with self.lines.open("rb") as file:
            told = json.loads(file.readline())
        return [EmbeddingDigest(bytes.fromhex(embedded), bool(cut)) for embedded, cut in told]

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        matrix: NDArray[Any] = np.load(self.matrix)
        return matrix

    def extras(self) -> AuxiliaryVectors:
        """Return what the passages are found by beside words and vectors."""
        return (
            open_document_auxiliary_vectors(self.beside)
            if self.beside is not None
            else AuxiliaryVectors()
        )


class IngestPipeline:
    """Parses, cuts and embeds documents; remembers in the job's journal which are done."""

    def __init__(
        self,
        recipe: RagRecipe,
        root: Path,
        embedder: Embedder,
        worker: ParserProcess,
        job: Job,
        held: ReusableContent | None = None,
        contexts: ContextWriter | None = None,
        encoders: AuxiliaryEncoders | None = None,
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
        self.vectors = PassageEmbedder(embedder, recipe.vectors, job.check_cancelled, held)
        self.extras: AuxiliaryVectorCache | None = None
        if encoders is not None:
            self.extras = AuxiliaryVectorCache(encoders, job.check_cancelled, held)
        self.parsed = 0

    @property
    def embedded(self) -> int:
        """How many texts were embedded in this sitting."""
        return self.vectors.embedded

    def recall(self, path: str, digest: str) -> ScratchDocument | FailedDocument | None:
        """Return what an earlier sitting made of the same bytes, if that is whole."""
        told = self.journal.get(path)
        if not told or told["digest"] != digest:
            return None
        if "reason" in told:
            return FailedDocument(path, told["code"], told["reason"])
        stored = self._place(DocumentEntry(path, digest, told["passages"], told["truncated"]))
        try:
            marks = [digest_bytes(file.read_bytes()) for file in stored.files]
        except FileNotFoundError:
            return None
        if marks != told["files"]:
            return None
        self._remember(stored)
        return stored

    def ingest_all(
        self, found: Sequence[DocumentFile]
    ) -> Iterator[ScratchDocument | FailedDocument]:
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
        work = IngestTask.of(self.recipe, self.root)
        made = engine.map(work, asked, block_size=_BLOCK_DOCUMENTS, pause=self.job.check_cancelled)
        for place, outcome in zip(asked, made, strict=True):
            yield self._accept(outcome, *place)

    def ingest(self, file: Path, path: str, digest: str) -> ScratchDocument | FailedDocument:
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
            return self._store(
                EmbeddedDocument(document, tuple(passages), tuple(marks), matrix), digest
            )
        except DataError as error:
            return self._fail(path, digest, error)

    def _accept(
        self, prepared: EmbeddedDocument | RejectedDocument, file: Path, path: str, digest: str
    ) -> ScratchDocument | FailedDocument:
        """Journal what a worker made of a document, as if it had been made here."""
        try:
            made = examine_embedded(prepared, file)
        except Cancelled:
            raise
        except StillroomError as error:
            return self._fail(path, digest, error)
        if made.document is not None:
            self._note(made.document)
        if isinstance(made, RejectedDocument):
            return self._fail(path, digest, made.error)
        if not made.passages:
            return self._fail(path, digest, _make_no_text_error(path))
        self.vectors.embedded += len({mark.embedded for mark in made.marks})
        return self._store(made, digest)

    def _note(self, document: Document) -> None:
        self.parsed += 1
        for notice in document.metadata.get("notices", ()):
            self.job.say(f"{document.path}: {notice}")

    def _fail(self, path: str, digest: str, error: StillroomError) -> FailedDocument:
        failed = FailedDocument.of(path, error)
        self.journal.put(path, {"digest": digest, "code": failed.code, "reason": failed.reason})
        return failed

    def _cut(self, document: Document) -> Sequence[Passage]:
        passages = chunk_document(
            document, self.recipe.chunker, self.embedder, self.job.check_cancelled
        )
        if not passages:
            raise _make_no_text_error(document.path)
        return passages if self.contexts is None else self.contexts.situate(document, passages)

    def _store(self, made: EmbeddedDocument, digest: str) -> ScratchDocument:
        path, passages = made.document.path, made.passages
        truncated = sum(mark.is_truncated for mark in made.marks)
        stored = self._place(DocumentEntry(path, digest, len(passages), truncated))
        head = json.dumps([[mark.embedded.hex(), int(mark.is_truncated)] for mark in made.marks])
        rows = [made.document.to_json(), *(passage.to_json() for passage in passages)]
        with full_disk_as_error(self.folder):
            stored.lines.write_bytes(
                b"".join(line + b"\n" for line in [head.encode(), *map(encode_json_line, rows)])
            )
            np.save(stored.matrix, made.matrix)
            if self.extras is not None and stored.beside is not None:
                shutil.rmtree(stored.beside, ignore_errors=True)
                stored.beside.mkdir()
                texts = get_embedder_inputs(self.recipe, self.embedder, passages)
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

    def _remember(self, stored: ScratchDocument) -> None:
        marks = stored.marks()
        self.vectors.remember(marks, stored.matrix)
        if self.extras is not None and stored.beside is not None:
            self.extras.remember(marks, stored.beside)

    def _place(self, entry: DocumentEntry) -> ScratchDocument:
        mark = digest_text(canonical_json([entry.path, entry.digest]))[:24]
        lines, matrix = self.folder / f"{mark}.jsonl", self.folder / f"{mark}.npy"
        return ScratchDocument(entry, lines, matrix, self.folder / mark if self.extras else None)


def _make_no_text_error(path: str) -> DataError:
    return DataError(
        f"{path} holds no text",
        code="rag.no-text",
        where=path,
        expected="at least one passage",
        next="remove the file, or give a version of it that holds text",
    )


_SHOWN_FAILURES = 20


_PREPARATION_SETTINGS = {"origin", "limits", "chunker", "with_headings", "pooling", "vectors"}


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A file of the folder: where it is, its path below the root, its digest."""

    file: Path
    path: str
    digest: str


def discover_documents(reference: str) -> tuple[Path, FolderScan]:
    """Return the folder that paths are relative to, and what it holds.

    Raises:
        DataError: If there is no file to read.
    """
    place = find_output(resolve_local(reference))
    scan = scan_folder(place)
    if not scan.files:
        raise DataError(
            f"{place} holds no documents",
            code="rag.no-documents",
            where=str(place),
            expected="files of a known format: text, Markdown, HTML, PDF, office files",
            next="stillroom list methods text.parsers",
        )
    return (place if place.is_dir() else place.parent), scan


def digest_files(
    root: Path, scan: FolderScan, job: Job
) -> tuple[list[DocumentFile], list[FailedDocument]]:
    """Return the files with their digests in order of path, and those that cannot be read."""
    found: dict[str, DocumentFile] = {}
    failures = [FailedDocument(one.path, one.code, one.reason) for one in scan.refused]
    with job.phase("digest", len(scan.files), "documents") as progress:
        for file in progress.over(scan.files):
            name = file.relative_to(root).as_posix()
            path = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                if path in found:
                    raise OSError("another file has the same name once it is written as UTF-8")
                found[path] = DocumentFile(file, path, digest_file(file))
            except OSError as error:
                failures.append(
                    FailedDocument(path, "rag.unreadable", error.strerror or str(error))
                )
    return sorted(found.values(), key=lambda item: item.path), failures


def build_documents_parent(root: Path, found: Sequence[DocumentFile]) -> Parent:
    """Return the entry of artifact.json that says which files an index was made from."""
    named = find_address(root) or str(root)
    return Parent("documents", named, digest_json([[one.path, one.digest] for one in found]))


def build_embedder_parent(reference: str, fingerprint: str) -> Parent:
    """Return the entry of artifact.json that says what made the vectors.

    A method of the house (``static``) is no file beside the index, and is named as a reference.
    """
    is_name = ":" not in reference and not Path(reference).exists()
    return Parent(
        "embedder", f"embedder:{reference}" if is_name else reference, fingerprint, "checkpoint"
    )


def build_index_config(
    recipe: RagRecipe,
    embedder: Embedder,
    contexts: ContextWriter | None = None,
    encoders: AuxiliaryEncoders | None = None,
) -> IndexConfig:
    """Return what shapes the index that a recipe describes, its documents aside."""
    told = recipe.model_dump(mode="json")
    preparation = digest_json(
        {
            "version": __version__,
            "embedder": embedder.fingerprint,
            "context": contexts.fingerprint if contexts else "",
            **(encoders.settings if encoders else {}),
            **{name: told[name] for name in sorted(_PREPARATION_SETTINGS)},
        }
    )
    analyzer = Analyzer(recipe.keyword.stemming)
    return IndexConfig(
        preparation=preparation,
        settings={
            **{
                name: told[name]
                for name in sorted({*_PREPARATION_SETTINGS, "access", "dense", "keyword"})
            },
            "context": contexts.settings if contexts else None,
            **(encoders.settings if encoders else {}),
        },
        embedder={
            "reference": recipe.embedder,
            "fingerprint": embedder.fingerprint,
            "dimensions": embedder.dimensions,
        },
        analyzer={
            "version": ANALYZER_VERSION,
            "stemming": analyzer.stemming,
            "fingerprint": analyzer.fingerprint,
        },
    )


def read_document_metadata(
    recipe: RagRecipe, paths: Collection[str], job: Job
) -> dict[str, DocumentMetadata]:
    """Return what the recipe's metadata says of documents, by path.

    Raises:
        DataError: If the file cannot be used.
    """
    if recipe.metadata is None:
        return {}
    facts = read_metadata(Path(recipe.metadata))
    unknown = len(facts.keys() - set(paths))
    if unknown:
        job.say(f"{unknown} of {len(facts)} paths in {recipe.metadata} are no document's")
    return facts


def check_failures(
    failures: Sequence[FailedDocument], total: int, max_failed: float, root: str
) -> None:
    """Refuse to go on where none or too few of the documents can be used.

    Raises:
        DataError: If so; the first failures are named with their reasons.
    """
    if len(failures) < total and len(failures) <= max_failed * total:
        return
    counts = Counter(failed.code for failed in failures)
    shown = failures[:_SHOWN_FAILURES]
    rest = len(failures) - len(shown)
    raise DataError(
        [
            Problem(
                f"{len(failures)} of {total} documents cannot be used "
                f"({', '.join(f'{code} {count}' for code, count in sorted(counts.items()))})",
                "rag.documents-failed",
                root,
                f"at most {max_failed:.0%} of them, and one that can",
                "repair or remove them, or raise max_failed (of make: steps.index.max_failed)",
            ),
            *(Problem(failed.reason, failed.code, failed.path) for failed in shown),
            *([Problem(f"and {rest} more", "rag.documents-failed", root)] if rest else []),
        ]
    )
