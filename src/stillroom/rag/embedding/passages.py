"""Embeddings of passages: dense vectors, late chunking, and auxiliary sparse and token vectors.

A vector is known by the digest of its text, prefixes included, within one embedder and precision.

Source: Günther et al. 2024, arXiv:2409.04701. Such a vector depends on the whole document: a change
anywhere in it changes all of its passages' vectors.

Both read what the embedder reads of a passage, prefixes included, so that a text that was embedded
before has its extras, too, and neither is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.jobs import Estimate
from stillroom.models.encoders.retrieval import EMBEDDER_REFERENCE
from stillroom.models.interfaces import SpanEmbedder
from stillroom.provenance import Parent, digest_text
from stillroom.rag.search_engines.late_interaction import TokenVectors, merge_token_vectors
from stillroom.rag.search_engines.sparse import TermWeights, merge_term_weights
from stillroom.rag.types import (
    AuxiliaryContent,
    AuxiliaryVectors,
    EmbeddingDigest,
    open_auxiliary_vectors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.models.encoders.retrieval import MultiVectorEncoder, SparseEncoder
    from stillroom.models.interfaces import Vectors
    from stillroom.rag.recipe import LateInteractionSettings, RagRecipe, SparseSettings
    from stillroom.rag.storage.protocol import ReusableContent
    from stillroom.records import Document, Passage

__all__ = [
    "AuxiliaryEncoders",
    "AuxiliaryVectorCache",
    "PassageEmbedder",
    "check_pooling",
    "embed_late",
    "estimate_encoders",
    "open_document_auxiliary_vectors",
    "open_encoders",
    "open_term_weighter",
]


_BATCH = 32


class PassageEmbedder:
    """Embeds texts that neither this job nor the index before it has embedded."""

    def __init__(
        self,
        embedder: Embedder,
        dtype: str,
        check: Callable[[], None],
        held: ReusableContent | None = None,
    ) -> None:
        """Embed for one index.

        Args:
            embedder: What makes vectors.
            dtype: The precision in which they are kept.
            check: Called before each batch; raises to stop.
            held: An index of the same embedder and precision.
        """
        self.embedder, self.dtype, self.check, self.held = embedder, dtype, check, held
        self.embedded = 0
        self._places: dict[bytes, tuple[Path, int, bool]] = {}

    def remember(self, marks: Sequence[EmbeddingDigest], matrix: Path) -> None:
        """Take note of the vectors in a file, one for each mark."""
        for row, mark in enumerate(marks):
            self._places.setdefault(mark.embedded, (matrix, row, mark.is_truncated))

    def embed(
        self, path: str, passages: Sequence[Passage], texts: Sequence[str]
    ) -> tuple[list[EmbeddingDigest], NDArray[np.floating[Any]]]:
        """Return what is known of each passage's vector, and the vectors, (N, D).

        Args:
            path: The document, for errors.
            passages: What the texts are of.
            texts: What is embedded of each, prefixes included.

        Raises:
            DataError: If a vector cannot be compared.
            BackendError: If the embedder fails.
        """
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        matrix = np.empty((len(texts), self.embedder.dimensions), dtype=self.dtype)
        cut = [False] * len(texts)
        first: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            known = self._find(digest) if digest not in first else None
            if known is not None:
                matrix[row], cut[row] = known
            else:
                first.setdefault(digest, row)
        wanted = list(first.values())
        for start in range(0, len(wanted), _BATCH):
            self.check()
            rows = wanted[start : start + _BATCH]
            block, flags = self._embed_batch([texts[row] for row in rows])
            _check_vectors(path, [passages[row] for row in rows], block, self.embedder.dimensions)
            matrix[rows] = np.asarray(block, dtype=self.dtype)
            for row, flag in zip(rows, flags, strict=True):
                cut[row] = flag
            self.embedded += len(rows)
        for row, digest in enumerate(digests):
            if digest in first and first[digest] != row:
                matrix[row], cut[row] = matrix[first[digest]], cut[first[digest]]
        return [EmbeddingDigest(*each) for each in zip(digests, cut, strict=True)], matrix

    def embed_late(
        self, document: Document, passages: Sequence[Passage], reference: str
    ) -> tuple[list[EmbeddingDigest], NDArray[np.floating[Any]]]:
        """Return what is known of each passage's vector, and the vectors, (N, D), pooled late.

        Such a vector follows from all of the document's text: one that differs embeds all anew.

        Args:
            document: The document.
            passages: All of its passages.
            reference: The embedder's, for errors.

        Raises:
            DataError: If a vector cannot be compared.
            BackendError: If the embedder fails.
        """
        text = digest_text(document.text)
        names = [f"late {text} {passage.start} {passage.end}" for passage in passages]
        digests = [hashlib.sha256(name.encode()).digest() for name in names]
        known = [self._find(digest) for digest in digests]
        held = [one for one in known if one is not None]
        if len(held) == len(known):
            return [
                EmbeddingDigest(digest, cut) for digest, (_, cut) in zip(digests, held, strict=True)
            ], np.array([vector for vector, _ in held], dtype=self.dtype)
        self.check()
        before = self.embedder.truncated
        rows = embed_late(document, passages, self.embedder, reference)
        whole = len(rows) - (self.embedder.truncated - before)
        _check_vectors(document.path, passages, rows, self.embedder.dimensions)
        self.embedded += len(rows)
        marks = [EmbeddingDigest(digest, row >= whole) for row, digest in enumerate(digests)]
        return marks, np.asarray(rows, dtype=self.dtype)

    def _find(self, digest: bytes) -> tuple[NDArray[Any], bool] | None:
        place = self._places.get(digest)
        if place is not None:
            matrix, row, is_truncated = place
            return np.load(matrix, mmap_mode="r")[row], is_truncated
        return self.held.vector_of(digest) if self.held is not None else None

    def _embed_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bool]]:
        """Return vectors, and which texts were cut: the longest, as many as were counted."""
        before = self.embedder.truncated
        block = self.embedder.embed(list(texts), kind="passage")
        cut = self.embedder.truncated - before
        flags = [False] * len(texts)
        if cut:
            sizes = [self.embedder.count_tokens(text) for text in texts]
            for row in sorted(range(len(texts)), key=lambda row: -sizes[row])[:cut]:
                flags[row] = True
        return block, flags


def _check_vectors(
    path: str, passages: Sequence[Passage], block: NDArray[np.float32], dimensions: int
) -> None:
    """Refuse what cannot be compared: another width, zeros, infinities, no numbers."""
    if block.shape != (len(passages), dimensions):
        raise DataError(
            f"the embedder gave an array of shape {block.shape}",
            code="rag.bad-vector",
            where=path,
            expected=f"({len(passages)}, {dimensions})",
            next="check the embedder",
        )
    norms = np.linalg.norm(block.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-6))
    if len(bad):
        passage = passages[int(bad[0])]
        raise DataError(
            f"the vector of {path}, characters {passage.start}-{passage.end}, "
            "is zero or not a number",
            code="rag.bad-vector",
            where=path,
            expected="vectors with a direction",
            next="remove the document, or choose another embedder",
        )


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


_ENCODER_BATCH = 32


_TERMS_PER_PASSAGE = 160  # that SPLADE gives a passage of 200 tokens, or so


_PASSAGES_PER_SECOND = 15


_TOKEN_DIMENSIONS = {True: 384, False: 128}  # of an embedder's token states, and of ColBERT's


class AuxiliaryEncoders:
    """Opened models for what a recipe asks to be kept beside words and vectors."""

    def __init__(
        self,
        sparse: tuple[SparseSettings, SparseEncoder] | None,
        tokens: tuple[LateInteractionSettings, MultiVectorEncoder] | None,
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
            if told["model"] != EMBEDDER_REFERENCE
        ]

    def encode(self, texts: Sequence[str], check: Callable[[], None]) -> AuxiliaryVectors:
        """Return the extras of texts.

        Args:
            texts: What the embedder reads of passages.
            check: Called before each batch; raises to stop.
        """
        weights: list[dict[str, float]] = []
        vectors: list[Any] = []
        for start in range(0, len(texts), _ENCODER_BATCH):
            check()
            batch = texts[start : start + _ENCODER_BATCH]
            if self._sparse is not None:
                weights += self._sparse[1].encode(batch)
            if self._tokens is not None:
                vectors += self._tokens[1].encode(batch, kind="passage")
        return AuxiliaryVectors(
            TermWeights.of(weights) if self._sparse is not None else None,
            self._join(vectors) if self._tokens is not None else None,
        )

    def _join(self, vectors: Sequence[Any]) -> TokenVectors | None:
        if self._tokens is None:
            return None
        own, model = self._tokens
        return TokenVectors.join(vectors, model.width, bits=own.bits)


class AuxiliaryVectorCache:
    """Makes the extras of texts that neither this job nor the index before it has read."""

    def __init__(
        self, encoders: AuxiliaryEncoders, check: Callable[[], None], held: ReusableContent | None
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
        self._held = held if is_same and isinstance(held, AuxiliaryContent) else None
        self._places: dict[bytes, tuple[Path, int]] = {}
        self.encoded = 0

    def remember(self, marks: Sequence[EmbeddingDigest], folder: Path) -> None:
        """Take note of the extras in a folder, one for each mark."""
        for row, mark in enumerate(marks):
            self._places.setdefault(mark.embedded, (folder, row))

    def write(self, texts: Sequence[str], marks: Sequence[EmbeddingDigest], folder: Path) -> None:
        """Write the extras of a document's passages into a folder.

        Args:
            texts: What the embedder reads of them.
            marks: The digests of the texts.
            folder: Empty, and there.
        """
        known: dict[int, AuxiliaryVectors] = {}
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

    def _find(self, embedded: bytes) -> AuxiliaryVectors | None:
        place = self._places.get(embedded)
        if place is not None:
            folder, row = place
            return open_document_auxiliary_vectors(folder).span(row, row + 1)
        return self._held.extras_of_text(embedded) if self._held is not None else None


def open_document_auxiliary_vectors(folder: Path) -> AuxiliaryVectors:
    """Open what ``AuxiliaryVectorCache.write`` left in a folder.

    Raises:
        IntegrityError: If a file is damaged.
    """
    return open_auxiliary_vectors(folder, {path.name: path for path in folder.iterdir()})


def open_encoders(
    sparse: SparseSettings | None, tokens: LateInteractionSettings | None, embedder: Embedder
) -> AuxiliaryEncoders | None:
    """Open what a recipe asks for; None where it asks for nothing.

    Raises:
        CheckpointError: If a model cannot be used so.
        DataError: If the embedder gives no token states.
    """
    if sparse is None and tokens is None:
        return None
    weigher, reader = None, None
    if sparse is not None:
        weigher = sparse, open_term_weighter(sparse.model, sparse.max_terms)
    if tokens is not None:
        from stillroom.models.encoders.retrieval import open_multi_vector_encoder

        reader = tokens, open_multi_vector_encoder(tokens.model, embedder)
    return AuxiliaryEncoders(weigher, reader)


def open_term_weighter(reference: str, max_terms: int) -> SparseEncoder:
    """Open a masked language model by its reference.

    Raises:
        CheckpointError: If it leads to none.
    """
    from stillroom.models.encoders.retrieval import SparseEncoder
    from stillroom.models.hub import resolve_checkpoint

    return SparseEncoder(resolve_checkpoint(reference), max_terms=max_terms)


def estimate_encoders(recipe: RagRecipe, passages: float, tokens: float) -> Estimate:
    """Return what extras will need beside an index of so many passages and tokens."""
    total = Estimate()
    if recipe.sparse is not None:
        size = int(passages * min(recipe.sparse.max_terms, _TERMS_PER_PASSAGE) * 8)
        total += Estimate(
            900_000_000 + 3 * size,
            2 * size,
            passages / _PASSAGES_PER_SECOND,
            "leave sparse out",
            "lower sparse.max_terms",
            f"term weights of {passages:.0f} passages by a masked language model",
        )
    if recipe.tokens is not None:
        width = _TOKEN_DIMENSIONS[recipe.tokens.model == EMBEDDER_REFERENCE]
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
