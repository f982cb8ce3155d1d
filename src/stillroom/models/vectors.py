"""What every embedder does with texts and rows: refuse empty texts, make rows unit length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillroom.errors import DataError
from stillroom.models.protocols import Embedder, Vectors

__all__ = ["SPECIAL_TOKENS", "refuse_empty", "text_room", "unit_rows"]

SPECIAL_TOKENS = 2
"""What tokenizers of encoders put around a text, at most."""


def text_room(embedder: Embedder) -> int:
    """Return how many tokens a text may have so that an embedder reads all of it."""
    return embedder.max_tokens - SPECIAL_TOKENS


def refuse_empty(texts: Sequence[str]) -> None:
    """Refuse texts without any visible character.

    Raises:
        DataError: If there is one: its vector would have no direction, and NaN would rank first.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise DataError(
                f"text {number} of {len(texts)} is empty",
                code="data.empty-text",
                expected="at least one visible character",
                next="drop empty passages before embedding",
            )


def unit_rows(rows: Vectors) -> Vectors:
    """Return rows of length 1, (N, D) float32, computed in float64.

    Raises:
        DataError: If a row is zero or not finite.
    """
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise DataError(
            "the embedder gave a vector without direction (zero, or not a number)",
            code="data.bad-vector",
            expected="finite vectors that are not zero",
            next="check the checkpoint, or use dtype float32",
        )
    unit: Vectors = (wide / lengths).astype(np.float32)
    return unit
