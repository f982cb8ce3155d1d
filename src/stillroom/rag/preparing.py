"""Preparing documents on the workers of an engine: parsed, cut and embedded, one by one.

What a document becomes depends on its bytes and the settings alone, so it does not matter where.
Workers read the files themselves, by the same paths; what they made is journaled by the job. Where
a file says it is from is looked at by the job, too: only there lies the key of the lab's marks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import Cancelled, DataError, StillroomError
from stillroom.jobs.engines import Opened
from stillroom.rag.cutting import cut_document
from stillroom.rag.embedding import TextVectors
from stillroom.rag.prefixes import passage_texts
from stillroom.rag.store.parts import Mark
from stillroom.records import Document, Origin, Passage
from stillroom.text.reading import examine_document, parse_file
from stillroom.text.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.rag.recipe import RagRecipe

__all__ = [
    "Place",
    "Prepared",
    "Preparing",
    "Refused",
    "embed_document",
    "examine_prepared",
    "read_document",
    "texts_of",
]


Place = tuple[Path, str, str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document with its passages, what is known of their vectors, and the vectors, (N, D)."""

    document: Document
    passages: tuple[Passage, ...]
    marks: tuple[Mark, ...]
    matrix: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing comes of a document, and the document where it could be read."""

    error: StillroomError
    document: Document | None = None


@dataclass(frozen=True)
class Preparing:
    """The work of a worker: documents, given as file, path below the root and digest.

    An error that is a document's own is given back in its place: any while it is read, and a
    ``DataError`` after that. What a model or a disk raises is the job's.
    """

    recipe: str
    root: Path
    concurrency: int = 1

    @classmethod
    def of(cls, recipe: RagRecipe, root: Path) -> Preparing:
        """Return the work that a recipe asks for."""
        return cls(json.dumps(recipe.model_dump(mode="json")), root.absolute())

    def open(self) -> Opened[Place, Prepared | Refused]:
        """Open the embedder and a parser's process; return what prepares documents."""
        from stillroom.models import open_embedder
        from stillroom.rag.recipe import RagRecipe

        recipe = RagRecipe.model_validate_json(self.recipe)
        embedder = open_embedder(recipe.embedder)
        worker = Worker()
        vectors = TextVectors(embedder, recipe.vectors, lambda: None)

        def prepare(place: Place) -> Prepared | Refused:
            try:
                document = read_document(recipe, self.root, place, worker)
            except Cancelled:
                raise
            except StillroomError as error:
                return Refused(error)
            try:
                passages = cut_document(document, recipe.chunker, embedder)
                marks, matrix = embed_document(vectors, recipe, document, passages)
            except DataError as error:
                return Refused(error, document)
            return Prepared(document, tuple(passages), tuple(marks), matrix)

        def prepare_all(block: Sequence[Place]) -> list[Prepared | Refused]:
            return [prepare(one) for one in block]

        return Opened(prepare_all, (worker.close,))


def examine_prepared(made: Prepared | Refused, file: Path) -> Prepared | Refused:
    """Return what a worker made of a file, with what the file says of its own origin.

    Raises:
        StillroomError: If the file's marks cannot be looked up.
    """
    before = made.document
    if before is None:
        return made
    document = examine_document(before, file)
    if isinstance(made, Refused):
        return replace(made, document=document)
    if document.origin == before.origin:
        return replace(made, document=document)
    known, done = document.origin, len(before.origin.chain)
    passages = [
        replace(one, origin=replace(known, chain=(*known.chain, *one.origin.chain[done:])))
        for one in made.passages
    ]
    return replace(made, document=document, passages=tuple(passages))


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
