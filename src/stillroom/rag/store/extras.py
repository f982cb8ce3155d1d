"""Extras: what a passage is found by beside its words and its one vector, where a recipe asks.

Term weights that a model learned, and vectors of its tokens. Documents carry theirs from where they
are made to the segment that keeps them; parts that know of none have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from stillroom.rag.engines.sparse_engine import (
    WEIGHTS,
    SparseEngine,
    TermWeights,
    merge_term_weights,
)
from stillroom.rag.engines.token_engine import TokenEngine
from stillroom.rag.engines.token_vectors import TOKENS, TokenVectors, merge_token_vectors
from stillroom.rag.store.snapshots import damaged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stillroom.rag.store.parts import Part
    from stillroom.rag.store.rows import Rows
    from stillroom.rag.store.structures import Structures

__all__ = [
    "ExtraHoldings",
    "ExtraPart",
    "ExtraReading",
    "Extras",
    "extras_of",
    "open_extras",
    "write_extras",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Extras:
    """Term weights and token vectors of the same passages; None where there are none."""

    weights: TermWeights | None = None
    tokens: TokenVectors | None = None

    def span(self, first: int, last: int) -> Extras:
        """Return those of the passages from ``first`` up to ``last``."""
        return Extras(
            self.weights.span(first, last) if self.weights is not None else None,
            self.tokens.span(first, last) if self.tokens is not None else None,
        )


@runtime_checkable
class ExtraPart(Protocol):
    """A document's share of an index that brings extras."""

    def extras(self) -> Extras:
        """Return the extras of its passages, in order."""


@runtime_checkable
class ExtraHoldings(Protocol):
    """What a snapshot holds, with extras to be taken over."""

    def extras_of_text(self, embedded: bytes) -> Extras | None:
        """Return the extras of a passage by the digest of its text, or None."""


@runtime_checkable
class ExtraReading(Protocol):
    """A snapshot whose store keeps extras."""

    def open_sparse(self, everyone: Rows) -> SparseEngine | None:
        """Return what searches the term weights of a population, None where there are none."""

    def open_tokens(self, everyone: Rows) -> TokenEngine | None:
        """Return what searches the token vectors of a population, None where there are none."""


def extras_of(part: Part) -> Extras:
    """Return the extras that a part brings."""
    return part.extras() if isinstance(part, ExtraPart) else Extras()


def write_extras(
    folder: Path,
    older: Sequence[tuple[Extras, NDArray[np.bool_]]],
    parts: Sequence[Part],
    structures: Structures,
) -> None:
    """Write the extras of older segments' kept rows, then those of documents, in order.

    Args:
        folder: Of the new segment.
        older: Each older segment's extras, and which of its rows are kept.
        parts: Documents.
        structures: What is kept; what they ask for each part must bring.

    Raises:
        IntegrityError: If a document has no extras that are asked for.
        ResourceError: If the disk is full.
    """
    if structures.sparse:
        merge_term_weights(folder, _pieces(folder, older, parts, "weights"))
    if structures.tokens:
        merge_token_vectors(folder, _pieces(folder, older, parts, "tokens"))


def open_extras(place: Path, files: Mapping[str, Any]) -> Extras:
    """Open the extras of a segment's or a document's folder, as far as their files are named.

    Raises:
        IntegrityError: If a file is missing or damaged.
    """
    return Extras(
        TermWeights.open(place) if WEIGHTS in files else None,
        TokenVectors.open(place) if TOKENS in files else None,
    )


def _pieces(
    folder: Path,
    older: Sequence[tuple[Extras, NDArray[np.bool_]]],
    parts: Sequence[Part],
    name: str,
) -> Iterator[tuple[Any, NDArray[np.bool_] | None]]:
    """Yield what is merged one by one, so that few files are open at once."""
    for extras, kept in older:
        yield _need(getattr(extras, name), folder, name), kept
    for part in parts:
        yield _need(getattr(extras_of(part), name), folder, part.entry.path), None


def _need(found: T | None, folder: Path, what: str) -> T:
    if found is None:
        raise damaged(folder, f"{what} brings nothing that the index's settings ask for")
    return found
