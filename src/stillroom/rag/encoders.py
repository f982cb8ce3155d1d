"""Encoders: what makes term weights and token vectors of passages, each distinct text once.

Both read what the embedder reads of a passage, prefixes included, so that a text that was embedded
before has its extras, too, and neither is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import Estimate
from stillroom.models.token_states import EMBEDDER
from stillroom.provenance import Parent
from stillroom.rag.engines.sparse_engine import TermWeights, merge_term_weights
from stillroom.rag.engines.token_vectors import TokenVectors, merge_token_vectors
from stillroom.rag.store.extras import ExtraHoldings, Extras, open_extras

if TYPE_CHECKING:
    from stillroom.models import Embedder
    from stillroom.models.term_weights import TermEncoder
    from stillroom.models.token_states import TokenEncoder
    from stillroom.rag.recipe import RagRecipe, SparseSettings, TokenSettings
    from stillroom.rag.store.parts import Mark
    from stillroom.rag.store.protocol import Holdings

__all__ = [
    "Encoders",
    "ExtraTexts",
    "estimate_encoders",
    "open_document_extras",
    "open_encoders",
    "open_terms",
]

_BATCH = 32
_TERMS = 160  # that SPLADE gives a passage of 200 tokens, or so
_PASSAGES_PER_SECOND = 15
_WIDTHS = {True: 384, False: 128}  # of an embedder's token states, and of ColBERT's


class Encoders:
    """Opened models for what a recipe asks to be kept beside words and vectors."""

    def __init__(
        self,
        sparse: tuple[SparseSettings, TermEncoder] | None,
        tokens: tuple[TokenSettings, TokenEncoder] | None,
    ) -> None:
        """Hold settings and models; callers use ``open_encoders``."""
        self._sparse, self._tokens = sparse, tokens

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes the index, with the models' fingerprints; nothing for what is not asked."""
        told = {}
        for name, pair in (("sparse", self._sparse), ("tokens", self._tokens)):
            if pair is not None:
                own, model = pair
                told[name] = {**own.model_dump(mode="json"), "fingerprint": model.fingerprint}
        return told

    @property
    def parents(self) -> list[Parent]:
        """The entries of artifact.json for models that are files of their own."""
        return [
            Parent(role, told["model"], told["fingerprint"], "checkpoint")
            for role, told in self.settings.items()
            if told["model"] != EMBEDDER
        ]

    def encode(self, texts: Sequence[str], check: Callable[[], None]) -> Extras:
        """Return the extras of texts.

        Args:
            texts: What the embedder reads of passages.
            check: Called before each batch; raises to stop.
        """
        weights: list[dict[str, float]] = []
        vectors: list[Any] = []
        for start in range(0, len(texts), _BATCH):
            check()
            batch = texts[start : start + _BATCH]
            if self._sparse is not None:
                weights += self._sparse[1].encode(batch)
            if self._tokens is not None:
                vectors += self._tokens[1].encode(batch, kind="passage")
        return Extras(
            TermWeights.of(weights) if self._sparse is not None else None,
            self._join(vectors) if self._tokens is not None else None,
        )

    def _join(self, vectors: Sequence[Any]) -> TokenVectors | None:
        if self._tokens is None:
            return None
        own, model = self._tokens
        return TokenVectors.join(vectors, model.width, bits=own.bits)


class ExtraTexts:
    """Makes the extras of texts that neither this job nor the index before it has read."""

    def __init__(
        self, encoders: Encoders, check: Callable[[], None], held: Holdings | None
    ) -> None:
        """Make extras for one index.

        Args:
            encoders: What makes them.
            check: Called before each batch; raises to stop.
            held: An index of the same embedder; its extras are taken over where the same encoders
                made them.
        """
        self.encoders, self.check = encoders, check
        is_same = held is not None and all(
            held.description["settings"].get(name) == encoders.settings.get(name)
            for name in ("sparse", "tokens")
        )
        self._held = held if is_same and isinstance(held, ExtraHoldings) else None
        self._places: dict[bytes, tuple[Path, int]] = {}
        self.encoded = 0

    def remember(self, marks: Sequence[Mark], folder: Path) -> None:
        """Take note of the extras in a folder, one for each mark."""
        for row, mark in enumerate(marks):
            self._places.setdefault(mark.embedded, (folder, row))

    def write(self, texts: Sequence[str], marks: Sequence[Mark], folder: Path) -> None:
        """Write the extras of a document's passages into a folder.

        Args:
            texts: What the embedder reads of them.
            marks: The digests of the texts.
            folder: Empty, and there.
        """
        known: dict[int, Extras] = {}
        fresh: dict[bytes, int] = {}
        for row, mark in enumerate(marks):
            found = self._find(mark.embedded) if mark.embedded not in fresh else None
            if found is not None:
                known[row] = found
            else:
                fresh.setdefault(mark.embedded, len(fresh))
        wanted: list[str] = [""] * len(fresh)
        for row, mark in enumerate(marks):
            if row not in known:
                wanted[fresh[mark.embedded]] = texts[row]
        made = self.encoders.encode(wanted, self.check)
        self.encoded += len(wanted)
        pieces = [
            known[row] if row in known else made.span(at := fresh[mark.embedded], at + 1)
            for row, mark in enumerate(marks)
        ]
        if made.weights is not None:
            merge_term_weights(folder, ((one.weights, None) for one in pieces if one.weights))
        if made.tokens is not None:
            merge_token_vectors(folder, ((one.tokens, None) for one in pieces if one.tokens))

    def _find(self, embedded: bytes) -> Extras | None:
        place = self._places.get(embedded)
        if place is not None:
            folder, row = place
            return open_document_extras(folder).span(row, row + 1)
        return self._held.extras_of_text(embedded) if self._held is not None else None


def open_document_extras(folder: Path) -> Extras:
    """Open what ``ExtraTexts.write`` left in a folder.

    Raises:
        IntegrityError: If a file is damaged.
    """
    return open_extras(folder, {path.name: path for path in folder.iterdir()})


def open_encoders(
    sparse: SparseSettings | None, tokens: TokenSettings | None, embedder: Embedder
) -> Encoders | None:
    """Open what a recipe asks for; None where it asks for nothing.

    Raises:
        CheckpointError: If a model cannot be used so.
        DataError: If the embedder gives no token states.
    """
    if sparse is None and tokens is None:
        return None
    weigher, reader = None, None
    if sparse is not None:
        weigher = sparse, open_terms(sparse.model, sparse.max_terms)
    if tokens is not None:
        from stillroom.models.token_states import open_token_encoder

        reader = tokens, open_token_encoder(tokens.model, embedder)
    return Encoders(weigher, reader)


def open_terms(reference: str, max_terms: int) -> TermEncoder:
    """Open a masked language model by its reference.

    Raises:
        CheckpointError: If it leads to none.
    """
    from stillroom.models.hub import resolve_checkpoint
    from stillroom.models.term_weights import TermEncoder

    return TermEncoder(resolve_checkpoint(reference), max_terms=max_terms)


def estimate_encoders(recipe: RagRecipe, passages: float, tokens: float) -> Estimate:
    """Return what extras will need beside an index of so many passages and tokens."""
    total = Estimate()
    if recipe.sparse is not None:
        size = int(passages * min(recipe.sparse.max_terms, _TERMS) * 8)
        total += Estimate(
            900_000_000 + 3 * size,
            2 * size,
            passages / _PASSAGES_PER_SECOND,
            "leave sparse out",
            "lower sparse.max_terms",
            f"term weights of {passages:.0f} passages by a masked language model",
        )
    if recipe.tokens is not None:
        width = _WIDTHS[recipe.tokens.model == EMBEDDER]
        size = int(tokens * 1.1 * (width * recipe.tokens.bits / 8 + 4))
        total += Estimate(
            800_000_000,
            2 * size,
            passages / _PASSAGES_PER_SECOND,
            "leave tokens out",
            "lower tokens.bits",
            f"{tokens:.0f} token vectors of {width} numbers of {recipe.tokens.bits} bits",
        )
    return total
