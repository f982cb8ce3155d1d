"""Preparation of a document: parsing, chunking and embedding (``DocumentFile`` to vectors).

The output depends only on the document's bytes and the settings, so it can be computed anywhere.
Workers read the files themselves, under the same paths; the job journals their results. The job
itself rechecks the origin recorded in each file, since only it has the key of the lab's marks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import Cancelled, DataError, StillroomError
from stillroom.jobs.engines import WorkerResources
from stillroom.models.encoders.text_encoder import get_max_text_tokens
from stillroom.rag.embedding.passages import PassageEmbedder
from stillroom.rag.types import EmbeddingDigest, build_embedding_texts
from stillroom.records import Document, Origin, Passage
from stillroom.text.parser_process import ParserProcess
from stillroom.text.reader import parse_file, recheck_origin

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.index_settings import IndexSettings

__all__ = [
    "DocumentFile",
    "EmbeddedDocument",
    "FailedDocument",
    "IngestTask",
    "embed_document",
    "examine_embedded",
    "fit_chunker",
    "get_embedder_inputs",
    "read_document",
]


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A file of the folder: its location, its path below the root, its digest, and its bytes."""

    file: Path
    path: str
    digest: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document that could not be ingested, and the reason.

    ``document`` is set between a worker and the job if the file could be parsed.
    """

    path: str
    code: str
    reason: str
    document: Document | None = None

    @classmethod
    def of(
        cls, path: str, error: StillroomError, document: Document | None = None
    ) -> FailedDocument:
        """Create an entry from an error: the problem and the suggested next step."""
        problem = error.problems[0]
        reason = f"{problem.what}; next: {problem.next}" if problem.next else problem.what
        return cls(path, problem.code, reason, document)

    def to_json(self) -> dict[str, str]:
        """Convert to JSON-compatible values."""
        return {"path": self.path, "code": self.code, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class EmbeddedDocument:
    """A document with its passages, their embedding digests, and their vectors, (N, D)."""

    document: Document
    passages: tuple[Passage, ...]
    marks: tuple[EmbeddingDigest, ...]
    matrix: NDArray[Any]


@dataclass(frozen=True)
class IngestTask:
    """The task of a worker: documents of a folder.

    An error of a single document is returned as its failure: any error while it is read,
    and a ``DataError`` after that. Errors of a model or a disk are raised.
    """

    recipe: str
    root: Path
    concurrency: int = 1

    @classmethod
    def of(cls, recipe: IndexSettings, root: Path) -> IngestTask:
        """Create the task for an index."""
        from stillroom.rag.index_settings import IndexSettings

        settings = recipe.model_dump(mode="json", include=set(IndexSettings.model_fields))
        return cls(json.dumps(settings), root.absolute())

    def open(self) -> WorkerResources[DocumentFile, EmbeddedDocument | FailedDocument]:
        """Open the embedder and a parser process; return the function that prepares documents."""
        from stillroom.models import open_embedder
        from stillroom.rag.index_settings import IndexSettings

        recipe = IndexSettings.model_validate_json(self.recipe)
        embedder = open_embedder(recipe.embedder)
        worker = ParserProcess()
        vectors = PassageEmbedder(embedder, recipe.vectors)

        def prepare(file: DocumentFile) -> EmbeddedDocument | FailedDocument:
            try:
                document = read_document(recipe, self.root, file, worker)
            except Cancelled:
                raise
            except StillroomError as error:
                return FailedDocument.of(file.path, error)
            try:
                passages = list(recipe.chunker.chunk(document, count=embedder.count_tokens))
                marks, matrix = embed_document(vectors, recipe, document, passages)
            except DataError as error:
                return FailedDocument.of(file.path, error, document)
            return EmbeddedDocument(document, tuple(passages), tuple(marks), matrix)

        def prepare_all(
            block: Sequence[DocumentFile],
        ) -> list[EmbeddedDocument | FailedDocument]:
            return [prepare(file) for file in block]

        return WorkerResources(prepare_all, (worker.close,))


def examine_embedded(
    prepared: EmbeddedDocument | FailedDocument, file: Path
) -> EmbeddedDocument | FailedDocument:
    """Return a worker's result with the origin recorded in the file itself.

    Raises:
        StillroomError: If the file's marks cannot be looked up.
    """
    before = prepared.document
    if before is None:
        return prepared
    document = recheck_origin(before, file)
    if isinstance(prepared, FailedDocument):
        return replace(prepared, document=document)
    if document.origin == before.origin:
        return replace(prepared, document=document)
    known, done = document.origin, len(before.origin.chain)
    passages = [
        replace(passage, origin=replace(known, chain=(*known.chain, *passage.origin.chain[done:])))
        for passage in prepared.passages
    ]
    return replace(prepared, document=document, passages=tuple(passages))


def read_document(
    recipe: IndexSettings, root: Path, file: DocumentFile, worker: ParserProcess
) -> Document:
    """Parse one document.

    Its path is relative to ``root``; ``worker`` parses risky formats in a separate process.

    Raises:
        DataError: If it cannot be read, or the file's digest has changed.
    """
    document = parse_file(
        file.file,
        root=root,
        limits=recipe.limits,
        origin=Origin(recipe.origin.kind, (), recipe.origin.license),
        worker=worker,
        parsers=recipe.parsers,
    )
    if document.path != file.path or document.digest != file.digest:
        raise DataError(
            f"{file.path} changed while it was read",
            code="rag.document-changed",
            where=file.path,
            expected="documents that stay as they are while the job runs",
            next="run the job again",
        )
    return document


def get_embedder_inputs(
    recipe: IndexSettings, embedder: Embedder, passages: Sequence[Passage]
) -> list[str]:
    """Return the texts to embed."""
    return build_embedding_texts(passages, embedder, with_headings=recipe.with_headings)


def embed_document(
    vectors: PassageEmbedder,
    recipe: IndexSettings,
    document: Document,
    passages: Sequence[Passage],
) -> tuple[list[EmbeddingDigest], NDArray[Any]]:
    """Return the passages' embedding digests and vectors, (N, D)."""
    return vectors.embed(
        document.path, passages, get_embedder_inputs(recipe, vectors.embedder, passages)
    )


_MIN_PASSAGE_TOKENS = 4  # minimum size of a chunker


def fit_chunker(
    recipe: IndexSettings, embedder: Embedder, say: Callable[[str], None]
) -> IndexSettings:
    """Limit the recipe's chunk size to the embedder's maximum input.

    Text beyond the limit would be in no vector. A reduction is reported. ``say`` receives a
    message if the size was reduced.

    Raises:
        DataError: If the embedder's maximum input is too short for any passage.
    """
    room = get_max_text_tokens(embedder)
    if recipe.chunker.size <= room:
        return recipe
    if room < _MIN_PASSAGE_TOKENS:
        raise DataError(
            f"the embedder reads at most {room} tokens of a passage",
            code="rag.embedder-too-short",
            where=recipe.embedder,
            expected=f"at least {_MIN_PASSAGE_TOKENS}, without special tokens and prompts",
            next="choose another embedder",
        )
    say(
        f"chunker.size is {recipe.chunker.size}, but the embedder reads {room} tokens of a "
        f"passage: passages are cut at {room}"
    )
    chunker = recipe.chunker.model_copy(update={"size": room})
    return recipe.model_copy(update={"chunker": chunker})
