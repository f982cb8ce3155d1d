"""Ingestion pipeline: resumed work, and reuse of texts embedded before.

The output of a document depends only on its bytes and the settings. A text that was embedded
before, in this job or for the previous index, is not embedded again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom import __version__
from stillroom.errors import Cancelled, DataError, StillroomError
from stillroom.models.hub import LARGE_EMBEDDER, LARGE_EMBEDDER_BASE
from stillroom.objects import find_address
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import (
    Parent,
    canonical_json,
    digest_bytes,
    digest_json,
    digest_text,
    make_parent,
)
from stillroom.rag.analysis.analyzer import ANALYZER_VERSION, Analyzer
from stillroom.rag.embedding.passages import AuxiliaryVectorCache, PassageEmbedder
from stillroom.rag.ingestion.preparation import (
    DocumentFile,
    EmbeddedDocument,
    FailedDocument,
    IngestTask,
    embed_document,
    examine_embedded,
    get_embedder_inputs,
    read_document,
)
from stillroom.rag.storage.snapshots import IndexConfig
from stillroom.rag.types import (
    AuxiliaryVectors,
    DocumentEntry,
    EmbeddingDigest,
    encode_json_line,
    open_auxiliary_vectors,
)
from stillroom.records import Document, Passage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Job, Progress
    from stillroom.models import Embedder
    from stillroom.rag.embedding.passages import AuxiliaryEncoders
    from stillroom.rag.index_settings import IndexSettings
    from stillroom.rag.ingestion.contextual_retrieval import ContextWriter
    from stillroom.rag.storage.protocol import ReusableContent
    from stillroom.text.parser_process import ParserProcess

__all__ = [
    "IngestPipeline",
    "ScratchDocument",
    "build_documents_parent",
    "build_embedder_parent",
    "build_index_config",
    "build_metadata_parents",
]

_BLOCK_DOCUMENTS = 8
"""Number of documents per task."""
_SHARE_WITH_CONTEXTS = 0.02
"""Of a document's time, that of its vectors where a model writes a context of each passage."""


@dataclass(frozen=True, slots=True)
class ScratchDocument:
    """A finished document in the job's scratch folder: its lines and vectors.

    The first line has the passages' embedding digests, the second the document, the others the
    passages.
    """

    entry: DocumentEntry
    lines: Path
    matrix: Path
    beside: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All files written for the document, in order."""
        more = sorted(self.beside.iterdir()) if self.beside and self.beside.is_dir() else []
        return [self.lines, self.matrix, *more]

    def document_line(self) -> bytes:
        """Return the document as a line of JSON, without the line end."""
        return self.lines.read_bytes().split(b"\n", 2)[1]

    def passage_lines(self) -> list[bytes]:
        """Return the passages as lines of JSON, without the line ends."""
        return self.lines.read_bytes().split(b"\n")[2:-1]

    def marks(self) -> list[EmbeddingDigest]:
        """Return the embedding digest of each passage."""
        with self.lines.open("rb") as file:
            rows = json.loads(file.readline())
        return [EmbeddingDigest(bytes.fromhex(embedded), bool(cut)) for embedded, cut in rows]

    def vectors(self) -> NDArray[Any]:
        """Return the passages' vectors, (N, D)."""
        matrix: NDArray[Any] = np.load(self.matrix)
        return matrix

    def extras(self) -> AuxiliaryVectors:
        """Return the passages' term weights and token vectors, if any."""
        return open_auxiliary_vectors(self.beside) if self.beside else AuxiliaryVectors()


class IngestPipeline:
    """Parses, chunks and embeds documents, and journals the finished ones."""

    def __init__(
        self,
        recipe: IndexSettings,
        root: Path,
        embedder: Embedder,
        worker: ParserProcess,
        job: Job,
        reusable: ReusableContent | None = None,
        contexts: ContextWriter | None = None,
        encoders: AuxiliaryEncoders | None = None,
    ) -> None:
        """Process documents below ``root``.

        Vectors of equal texts are taken from ``reusable``, content of an index with the same
        embedder; ``worker`` parses risky formats; the journal and the scratch folder are those of
        ``job``.
        """
        self.recipe, self.root, self.embedder, self.job = recipe, root, embedder, job
        self.worker, self.contexts = worker, contexts
        self.journal = job.journal("documents")
        self.folder = job.scratch / "documents"
        self.folder.mkdir(exist_ok=True)
        self.vectors = PassageEmbedder(
            embedder, recipe.vectors, self._on_batch, reusable, self._keep_batch
        )
        self._batches = job.journal("batches")
        self._recall_batches()
        self.extras: AuxiliaryVectorCache | None = None
        if encoders is not None:
            self.extras = AuxiliaryVectorCache(encoders, self._on_batch, reusable)
        self.parsed = 0
        self._progress: Progress | None = None
        self._part = (0.0, 0.0)

    @contextmanager
    def phase(self, total: int, files: Sequence[DocumentFile]) -> Iterator[Progress]:
        """Count ``total`` documents, of which ``files`` are not known yet, by their bytes."""
        weight = sum(file.size for file in files)
        with self.job.phase("index", total, "documents", weight=weight) as self._progress:
            yield self._progress

    @property
    def embedded(self) -> int:
        """Number of texts embedded in this run."""
        return self.vectors.embedded

    def recall(self, path: str, digest: str) -> ScratchDocument | FailedDocument | None:
        """Return the journaled result for the same bytes, if its files are intact."""
        entry = self.journal.get(path)
        if not entry or entry["digest"] != digest:
            return None
        if "reason" in entry:
            return FailedDocument(path, entry["code"], entry["reason"])
        stored = self._build_entry_paths(
            DocumentEntry(path, digest, entry["passages"], entry["truncated"])
        )
        try:
            digests = [digest_bytes(file.read_bytes()) for file in stored.files]
        except FileNotFoundError:
            return None
        if digests != entry["files"]:
            return None
        self._register_vectors(stored)
        return stored

    def ingest_all(
        self, files: Sequence[DocumentFile]
    ) -> Iterator[ScratchDocument | FailedDocument]:
        """Parse, chunk and embed documents, locally or on the engine's workers, in order.

        Raises:
            Cancelled: If the user stops the job.
            BackendError: If the embedder fails.
            ResourceError: If the disk is full.
        """
        engine = self.job.engine
        if engine.is_remote and self.contexts is not None:
            self.job.warn("documents are prepared locally, since contexts call a model for each")
        if not engine.is_remote or self.contexts is not None:
            for file in files:
                self.job.check_cancelled()
                yield self.ingest(file)
            return
        absolute = [replace(file, file=file.file.absolute()) for file in files]
        work = IngestTask.of(self.recipe, self.root)
        outcomes = engine.map(
            work, absolute, block_size=_BLOCK_DOCUMENTS, pause=self.job.check_cancelled
        )
        for file, outcome in zip(absolute, outcomes, strict=True):
            yield self._accept(outcome, file)

    def ingest(self, file: DocumentFile) -> ScratchDocument | FailedDocument:
        """Parse, chunk and embed one document, and journal the result.

        Raises:
            Cancelled: If the user stops the job; the document is then parsed again on resume, and
                what is not embedded yet is embedded.
            BackendError: If the embedder fails.
            ResourceError: If the disk is full.
        """
        try:
            document = read_document(self.recipe, self.root, file, self.worker)
        except Cancelled:
            raise
        except StillroomError as error:
            return self._journal_failure(file, FailedDocument.of(file.path, error))
        self._report_notices(document)
        try:
            passages = self._chunk(document, file.size)
            marks, matrix = embed_document(self.vectors, self.recipe, document, passages)
            return self._store(
                EmbeddedDocument(document, tuple(passages), tuple(marks), matrix), file
            )
        except DataError as error:
            return self._journal_failure(file, FailedDocument.of(file.path, error))

    def _accept(
        self, prepared: EmbeddedDocument | FailedDocument, file: DocumentFile
    ) -> ScratchDocument | FailedDocument:
        """Journal the result of a worker as if it had been computed locally."""
        try:
            examined = examine_embedded(prepared, file.file)
        except Cancelled:
            raise
        except StillroomError as error:
            return self._journal_failure(file, FailedDocument.of(file.path, error))
        if examined.document is not None:
            self._report_notices(examined.document)
        if isinstance(examined, FailedDocument):
            return self._journal_failure(file, examined)
        if not examined.passages:
            failed = FailedDocument.of(file.path, _make_no_text_error(file.path))
            return self._journal_failure(file, failed)
        self.vectors.embedded += len({mark.embedded for mark in examined.marks})
        return self._store(examined, file)

    def _report_notices(self, document: Document) -> None:
        self.parsed += 1
        for notice in document.metadata.get("notices", ()):
            self.job.warn(f"{document.path}: {notice}")

    def _journal_failure(self, file: DocumentFile, failed: FailedDocument) -> FailedDocument:
        entry = {"digest": file.digest, "code": failed.code, "reason": failed.reason}
        self.journal.put(file.path, entry)
        return replace(failed, document=None)

    def _chunk(self, document: Document, size: int) -> Sequence[Passage]:
        passages = list(self.recipe.chunker.chunk(document, count=self.embedder.count_tokens))
        if not passages:
            raise _make_no_text_error(document.path)
        embedding = size * (_SHARE_WITH_CONTEXTS if self.contexts is not None else 1)
        encoding = embedding / 2 if self.extras is not None else 0
        if self.contexts is not None:
            self._part = 0, size - embedding
            passages = self.contexts.situate(document, passages, self._on_batch)
        self._part = size - embedding, size - encoding
        return passages

    def _on_batch(self, done: int, of: int) -> None:
        """Stop if the user asks for it, and show how much of a document is done."""
        self.job.check_cancelled()
        if self._progress is not None:
            begin, end = self._part
            self._progress.advance_within(begin + (end - begin) * done / of)

    def _keep_batch(self, marks: Sequence[EmbeddingDigest], matrix: NDArray[Any]) -> None:
        """Journal a batch of vectors of a document that is not finished."""
        name = f"{marks[0].embedded.hex()[:24]}.npy"
        path = self.folder / "batches" / name
        with full_disk_as_error(self.folder):
            path.parent.mkdir(exist_ok=True)
            np.save(path, matrix)
        rows = [[mark.embedded.hex(), mark.is_truncated] for mark in marks]
        self._batches.put(name, {"rows": rows, "file": digest_bytes(path.read_bytes())})

    def _recall_batches(self) -> None:
        """Register the journaled batches whose files are intact."""
        for name in list(self._batches.keys()):
            path, entry = self.folder / "batches" / name, self._batches[name]
            if path.is_file() and digest_bytes(path.read_bytes()) == entry["file"]:
                marks = [EmbeddingDigest(bytes.fromhex(text), cut) for text, cut in entry["rows"]]
                self.vectors.remember(marks, path)

    def _store(self, embedded: EmbeddedDocument, file: DocumentFile) -> ScratchDocument:
        path, passages = embedded.document.path, embedded.passages
        truncated = sum(mark.is_truncated for mark in embedded.marks)
        stored = self._build_entry_paths(DocumentEntry(path, file.digest, len(passages), truncated))
        head = json.dumps(
            [[mark.embedded.hex(), int(mark.is_truncated)] for mark in embedded.marks]
        )
        rows = [embedded.document.to_json(), *(passage.to_json() for passage in passages)]
        with full_disk_as_error(self.folder):
            stored.lines.write_bytes(
                b"".join(line + b"\n" for line in [head.encode(), *map(encode_json_line, rows)])
            )
            np.save(stored.matrix, embedded.matrix)
            if self.extras is not None and stored.beside is not None:
                shutil.rmtree(stored.beside, ignore_errors=True)
                stored.beside.mkdir()
                texts = get_embedder_inputs(self.recipe, self.embedder, passages)
                self._part = self._part[1], file.size
                self.extras.write(texts, embedded.marks, stored.beside)
        files = [digest_bytes(file.read_bytes()) for file in stored.files]
        self.journal.put(
            path,
            {
                "digest": file.digest,
                "passages": len(passages),
                "truncated": truncated,
                "files": files,
            },
        )
        self._register_vectors(stored)
        return stored

    def _register_vectors(self, stored: ScratchDocument) -> None:
        marks = stored.marks()
        self.vectors.remember(marks, stored.matrix)
        if self.extras is not None and stored.beside is not None:
            self.extras.remember(marks, stored.beside)

    def _build_entry_paths(self, entry: DocumentEntry) -> ScratchDocument:
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


_PREPARATION_SETTINGS = (
    "chunker",
    "limits",
    "origin",
    "parsers",
    "pooling",
    "vectors",
    "with_headings",
)


def build_documents_parent(root: Path, files: Sequence[DocumentFile]) -> Parent:
    """Return the parent entry of artifact.json for the source documents."""
    address = find_address(root) or str(root)
    return Parent("documents", address, digest_json([[file.path, file.digest] for file in files]))


def build_metadata_parents(recipe: IndexSettings, home: Path) -> list[Parent]:
    """Return the parent entry of artifact.json for the metadata file, if there is one.

    Args:
        recipe: The index's settings.
        home: The index's final folder.
    """
    return [make_parent("metadata", Path(path), home) for path in [recipe.metadata] if path]


def build_embedder_parent(reference: str, fingerprint: str) -> Parent:
    """Return the parent entry of artifact.json for the embedder.

    A built-in method (``static``) is not a file and is recorded as a reference; the large embedder
    by its base, whose publisher and license matter: the index itself names the arithmetic.
    """
    reference = LARGE_EMBEDDER_BASE if reference == LARGE_EMBEDDER else reference
    is_name = ":" not in reference and not Path(reference).exists()
    return Parent(
        "embedder", f"embedder:{reference}" if is_name else reference, fingerprint, "checkpoint"
    )


def build_index_config(
    recipe: IndexSettings,
    embedder: Embedder,
    contexts: ContextWriter | None = None,
    encoders: AuxiliaryEncoders | None = None,
) -> IndexConfig:
    """Return the configuration of the index that a recipe describes, without its documents."""
    settings = recipe.describe()
    preparation = digest_json(
        {
            "version": __version__,
            "embedder": embedder.fingerprint,
            "context": contexts.fingerprint if contexts else "",
            **(encoders.settings if encoders else {}),
            **{name: settings[name] for name in _PREPARATION_SETTINGS if name in settings},
        }
    )
    analyzer = Analyzer(recipe.keyword.stemming)
    return IndexConfig(
        preparation=preparation,
        settings={
            **dict(sorted(settings.items())),
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
