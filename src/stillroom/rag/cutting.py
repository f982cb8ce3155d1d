"""Cutting documents for an embedder: by its tokens, and never beyond what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillroom.errors import DataError
from stillroom.models.vectors import text_room

if TYPE_CHECKING:
    from stillroom.models import Embedder
    from stillroom.models.protocols import Vectors
    from stillroom.rag.recipe import RagRecipe
    from stillroom.records import Document, Passage
    from stillroom.text.method import Chunker

__all__ = ["cut_document", "fit_chunker"]

_BATCH = 32
_LEAST = 4  # the least size that a chunker takes


def fit_chunker(recipe: RagRecipe, embedder: Embedder, say: Callable[[str], None]) -> RagRecipe:
    """Return the recipe with its passages no larger than what the embedder reads.

    A larger size is lowered, and that is said: text beyond the limit would be in no vector.

    Args:
        recipe: What to build.
        embedder: What will read the passages.
        say: Told what was lowered.

    Raises:
        DataError: If the embedder reads too little for any passage.
    """
    room = text_room(embedder)
    if recipe.chunker.size <= room:
        return recipe
    if room < _LEAST:
        raise DataError(
            f"the embedder reads {room} tokens of a passage",
            code="rag.embedder-too-short",
            where=recipe.embedder,
            expected=f"at least {_LEAST}, special tokens and prompts aside",
            next="choose another embedder",
        )
    say(
        f"chunker.size is {recipe.chunker.size}, but the embedder reads {room} tokens of a "
        f"passage: passages are cut at {room}"
    )
    chunker = recipe.chunker.model_copy(update={"size": room})
    return recipe.model_copy(update={"chunker": chunker})


def cut_document(
    document: Document,
    chunker: Chunker,
    embedder: Embedder,
    check_cancelled: Callable[[], None] | None = None,
) -> list[Passage]:
    """Return a document's passages, measured by the embedder's tokens.

    Args:
        document: What to cut.
        chunker: How.
        embedder: Whose tokens count; some chunkers read its vectors of sentences.
        check_cancelled: Called between batches of sentences; what it raises ends the work.
    """
    count = embedder.count_tokens
    if not chunker.needs_embedder:  # plug-ins that know no vectors need not take the argument
        return list(chunker.chunk(document, count=count))

    def embed(texts: Sequence[str]) -> Vectors:
        blocks = []
        for start in range(0, len(texts), _BATCH):
            if check_cancelled is not None:
                check_cancelled()
            blocks.append(embedder.embed(texts[start : start + _BATCH], kind="passage"))
        return np.concatenate(blocks)

    return list(chunker.chunk(document, count=count, embed=embed))
