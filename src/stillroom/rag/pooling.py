"""Vectors of passages that were read with all of their document (late chunking).

Source: Günther et al. 2024, arXiv:2409.04701. Such a vector depends on the whole document: a change
anywhere in it changes all of its passages' vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.errors import DataError
from stillroom.models.protocols import SpanEmbedder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stillroom.models import Embedder
    from stillroom.models.protocols import Vectors
    from stillroom.rag.recipe import RagRecipe
    from stillroom.records import Document, Passage

__all__ = ["check_pooling", "embed_late"]


def check_pooling(recipe: RagRecipe, embedder: Embedder) -> None:
    """Refuse late pooling by an embedder that cannot do it, before any document is read.

    Raises:
        DataError: If the embedder gives no token states.
        CheckpointError: If it does not pool by the mean.
    """
    if recipe.pooling == "late":
        _spans_of(embedder, recipe.embedder).embed_spans("a", [(0, 1)], kind="passage")


def embed_late(
    document: Document, passages: Sequence[Passage], embedder: Embedder, reference: str
) -> Vectors:
    """Return a row for each passage, (N, D) float32, pooled from the states of the document.

    Args:
        document: What is read as a whole.
        passages: Pieces of it, in order.
        embedder: What reads.
        reference: Its name, for the error.

    Raises:
        DataError: If the embedder gives no token states.
    """
    spans = [(passage.start, passage.end) for passage in passages]
    return _spans_of(embedder, reference).embed_spans(document.text, spans, kind="passage")


def _spans_of(embedder: Embedder, reference: str) -> SpanEmbedder:
    if isinstance(embedder, SpanEmbedder):
        return embedder
    raise DataError(
        "the embedder gives no token states, which late pooling needs",
        code="rag.no-late-pooling",
        where=reference,
        expected="a sentence-transformers folder that pools by the mean",
        next="set pooling: passage, or choose another embedder",
    )
