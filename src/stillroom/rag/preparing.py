"""Preparing documents on the workers of an engine: parsed, cut and embedded, one by one.

What a document becomes depends on its bytes and the settings alone, so it does not matter where.
Workers read the files themselves, by the same paths; what they made is journaled by the job.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, StillroomError
from stillroom.rag.cutting import cut_document
from stillroom.rag.embedding import TextVectors
from stillroom.rag.prefixes import passage_texts
from stillroom.rag.store.parts import Mark
from stillroom.records import Document, Origin, Passage
from stillroom.text.examining import Examiner, current_examiner, examined_by
from stillroom.text.reading import parse_file
from stillroom.text.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.recipe import RagRecipe

__all__ = ["Place", "Prepared", "Preparing", "embed_document", "read_document", "texts_of"]


Place = tuple[Path, str, str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document with its passages, what is known of their vectors, and the vectors, (N, D)."""

    document: Document
    passages: tuple[Passage, ...]
    marks: tuple[Mark, ...]
    matrix: NDArray[Any]


@dataclass(frozen=True)
class Preparing:
    """The work of a worker: documents, given as file, path below the root and digest."""

    recipe: str
    root: Path
    examiner: Examiner | None = None
    concurrency: int = 1

    @classmethod
    def of(cls, recipe: RagRecipe, root: Path) -> Preparing:
        """Return the work that a recipe asks for."""
        return cls(json.dumps(recipe.model_dump(mode="json")), root, current_examiner())

    def open(self) -> Callable[[Sequence[Place]], list[Prepared | StillroomError]]:
        """Open the embedder and a parser's process; return what prepares documents."""
        from stillroom.models import open_embedder
        from stillroom.rag.recipe import RagRecipe

        recipe = RagRecipe.model_validate_json(self.recipe)
        embedder = open_embedder(recipe.embedder)
        worker = Worker()
        vectors = TextVectors(embedder, recipe.vectors, lambda: None)

        def prepare(place: Place) -> Prepared | StillroomError:
            try:
                document = read_document(recipe, self.root, place, worker)
                passages = cut_document(document, recipe.chunker, embedder)
                marks, matrix = embed_document(vectors, recipe, document, passages)
            except DataError as error:
                return error
            return Prepared(document, tuple(passages), tuple(marks), matrix)

        def prepare_all(block: Sequence[Place]) -> list[Prepared | StillroomError]:
            with examined_by(self.examiner) if self.examiner else nullcontext():
                return [prepare(one) for one in block]

        return prepare_all


def read_document(recipe: RagRecipe, root: Path, place: Place, worker: Worker) -> Document:
    """Parse one document.

    Args:
        recipe: What the documents become.
        root: The folder that paths are relative to.
        place: The file, its path below the root, and its digest.
        worker: What parses the risky formats.

    Raises:
        DataError: If it cannot be read, or is no longer the file of that digest.
    """
    file, path, digest = place
    document = parse_file(
        file,
        root=root,
        limits=recipe.limits,
        origin=Origin(recipe.origin.kind, (), recipe.origin.license),
        worker=worker,
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


def texts_of(recipe: RagRecipe, embedder: Embedder, passages: Sequence[Passage]) -> list[str]:
    """Return what the embedder reads of passages; pooled late, that is their text alone."""
    with_headings = recipe.with_headings and recipe.pooling == "passage"
    return passage_texts(passages, embedder, with_headings=with_headings)


def embed_document(
    vectors: TextVectors, recipe: RagRecipe, document: Document, passages: Sequence[Passage]
) -> tuple[list[Mark], NDArray[Any]]:
    """Return what is known of each passage's vector, and the vectors, (N, D)."""
    if recipe.pooling == "late":
        return vectors.embed_late(document, passages, recipe.embedder)
    return vectors.embed(document.path, passages, texts_of(recipe, vectors.embedder, passages))
