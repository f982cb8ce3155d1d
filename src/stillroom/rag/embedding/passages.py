"""Passage embedding (document embedder): dense vectors, and sparse and token vectors beside them.

Vectors are cached by the digest of their text, prefixes included, within one embedder and dtype.

Sparse and token encoders read the same text as the embedder, prefixes included, so that reused
texts have reusable auxiliary vectors, too.
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
from stillroom.provenance import Parent
from stillroom.rag.search_engines.late_interaction import TokenVectors, merge_token_vectors
from stillroom.rag.search_engines.sparse import TermWeights, merge_term_weights
from stillroom.rag.types import AuxiliaryVectors, EmbeddingDigest, open_auxiliary_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.models.encoders.retrieval import MultiVectorEncoder, SparseEncoder
    from stillroom.rag.index_settings import IndexSettings
    from stillroom.rag.interfaces import LateInteractionSettings, SparseSettings
    from stillroom.rag.storage.protocol import ReusableContent
    from stillroom.records import Passage

__all__ = [
    "AuxiliaryEncoders",
    "AuxiliaryVectorCache",
    "OnBatch",
    "PassageEmbedder",
    "estimate_encoders",
    "open_encoders",
    "open_term_weighter",
]


_BATCH = 32
_MANY = 256  # texts: ten seconds of work and more
OnBatch = Callable[[int, int], None]
"""Called before each batch with the texts that are done, and of how many; raises to stop."""


class PassageEmbedder:
    """Embeds texts that neither this job nor the previous index has embedded."""

    def __init__(
        self,
        embedder: Embedder,
        dtype: str,
        on_batch: OnBatch = lambda done, of: None,
        reusable: ReusableContent | None = None,
        keep: Callable[[Sequence[EmbeddingDigest], NDArray[Any]], None] | None = None,
    ) -> None:
        """Create an embedder of passages for one index.

        ``reusable`` is content of an index with the same embedder and dtype; ``keep`` receives each
        batch of a document of many, so that an interruption does not lose them.
        """
        self.embedder, self.dtype, self.held = embedder, dtype, reusable
        self._on_batch, self._keep = on_batch, keep
        self.embedded = 0
        self._places: dict[bytes, tuple[Path, int, bool]] = {}

    def remember(self, digests: Sequence[EmbeddingDigest], matrix: Path) -> None:
        """Register the vectors in a file for reuse, one for each digest."""
        for row, digest in enumerate(digests):
            self._places.setdefault(digest.embedded, (matrix, row, digest.is_truncated))

    def embed(
        self, path: str, passages: Sequence[Passage], texts: Sequence[str]
    ) -> tuple[list[EmbeddingDigest], NDArray[np.floating[Any]]]:
        """Return each passage's embedding digest, and the vectors, (N, D).

        Raises:
            DataError: If a vector is not comparable.
            BackendError: If the embedder fails.
        """
        digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        matrix = np.empty((len(texts), self.embedder.dimensions), dtype=self.dtype)
        truncated = [False] * len(texts)
        first: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            known = self._find(digest) if digest not in first else None
            if known is not None:
                matrix[row], truncated[row] = known
            else:
                first.setdefault(digest, row)
        new_rows = list(first.values())
        for start in range(0, len(new_rows), _BATCH):
            self._on_batch(start, len(new_rows))
            rows = new_rows[start : start + _BATCH]
            block, flags = self._embed_batch([texts[row] for row in rows])
            _check_vectors(path, [passages[row] for row in rows], block, self.embedder.dimensions)
            matrix[rows] = np.asarray(block, dtype=self.dtype)
            for row, flag in zip(rows, flags, strict=True):
                truncated[row] = flag
            self.embedded += len(rows)
            if self._keep is not None and len(new_rows) >= _MANY:
                marks = [EmbeddingDigest(digests[row], truncated[row]) for row in rows]
                self._keep(marks, matrix[rows])
        for row, digest in enumerate(digests):
            if digest in first and first[digest] != row:
                matrix[row], truncated[row] = matrix[first[digest]], truncated[first[digest]]
        return [EmbeddingDigest(*pair) for pair in zip(digests, truncated, strict=True)], matrix

    def _find(self, digest: bytes) -> tuple[NDArray[Any], bool] | None:
        position = self._places.get(digest)
        if position is not None:
            matrix, row, is_truncated = position
            return np.load(matrix, mmap_mode="r")[row], is_truncated
        return self.held.vector_of(digest) if self.held is not None else None

    def _embed_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bool]]:
        """Return vectors, and which texts were truncated: the longest, as many as were counted."""
        before = self.embedder.truncated
        block = self.embedder.embed(list(texts), kind="passage")
        truncated = self.embedder.truncated - before
        flags = [False] * len(texts)
        if truncated:
            sizes = [self.embedder.count_tokens(text) for text in texts]
            for row in sorted(range(len(texts)), key=lambda row: -sizes[row])[:truncated]:
                flags[row] = True
        return block, flags


def _check_vectors(
    path: str, passages: Sequence[Passage], block: NDArray[np.float32], dimensions: int
) -> None:
    """Raise an error for vectors that are not comparable: wrong shape, zero, infinite or NaN."""
    if block.shape != (len(passages), dimensions):
        raise DataError(
            f"the embedder returned an array of shape {block.shape}",
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


_TERMS_PER_PASSAGE = 160  # about the number that SPLADE gives a passage of 200 tokens
_PASSAGES_PER_SECOND = 15
_TOKEN_DIMENSIONS = {True: 384, False: 128}  # of an embedder's token states, and of ColBERT's


class AuxiliaryEncoders:
    """Encoders of the auxiliary vectors that a recipe asks for."""

    def __init__(
        self,
        sparse: tuple[SparseSettings, SparseEncoder] | None,
        tokens: tuple[LateInteractionSettings, MultiVectorEncoder] | None,
    ) -> None:
        """Store settings and models; callers use ``open_encoders``."""
        self._sparse, self._tokens = sparse, tokens

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the used encoders, with the models' fingerprints, by name."""
        settings = {}
        for name, pair in (("sparse", self._sparse), ("tokens", self._tokens)):
            if pair is not None:
                encoder_settings, model = pair
                settings[name] = {
                    **encoder_settings.model_dump(mode="json"),
                    "fingerprint": model.fingerprint,
                }
        return settings

    @property
    def parents(self) -> list[Parent]:
        """Parents in artifact.json: models with files of their own."""
        return [
            Parent(role, settings["model"], settings["fingerprint"], "checkpoint")
            for role, settings in self.settings.items()
            if settings["model"] != EMBEDDER_REFERENCE
        ]

    def encode(
        self, texts: Sequence[str], on_batch: OnBatch = lambda done, of: None
    ) -> AuxiliaryVectors:
        """Return the auxiliary vectors of texts."""
        weights: list[dict[str, float]] = []
        vectors: list[Any] = []
        for start in range(0, len(texts), _BATCH):
            on_batch(start, len(texts))
            batch = texts[start : start + _BATCH]
            if self._sparse is not None:
                weights += self._sparse[1].encode(batch)
            if self._tokens is not None:
                vectors += self._tokens[1].encode(batch, kind="passage")
        tokens = None
        if self._tokens is not None:
            settings, model = self._tokens
            tokens = TokenVectors.join(vectors, model.width, bits=settings.bits)
        return AuxiliaryVectors(TermWeights.of(weights) if self._sparse else None, tokens)


class AuxiliaryVectorCache:
    """Encodes texts that neither this job nor the previous index has encoded."""

    def __init__(
        self,
        encoders: AuxiliaryEncoders,
        on_batch: OnBatch,
        reusable: ReusableContent | None,
    ) -> None:
        """Create a cache of auxiliary vectors for one index.

        Args:
            encoders: Encoders of new texts.
            on_batch: Called before each batch.
            reusable: Reusable content of an index with the same embedder; its auxiliary vectors are
                reused if the same encoders made them.
        """
        self.encoders, self._on_batch = encoders, on_batch
        is_same = reusable is not None and all(
            reusable.description["settings"].get(name) == encoders.settings.get(name)
            for name in ("sparse", "tokens")
        )
        self._held = reusable if is_same else None
        self._places: dict[bytes, tuple[Path, int]] = {}

    def remember(self, digests: Sequence[EmbeddingDigest], folder: Path) -> None:
        """Register the auxiliary vectors in a folder for reuse, one for each digest."""
        for row, digest in enumerate(digests):
            self._places.setdefault(digest.embedded, (folder, row))

    def write(self, texts: Sequence[str], digests: Sequence[EmbeddingDigest], folder: Path) -> None:
        """Write the auxiliary vectors of a document's passages into a folder.

        ``folder`` exists and is empty.
        """
        known: dict[int, AuxiliaryVectors] = {}
        new_numbers: dict[bytes, int] = {}
        for row, digest in enumerate(digests):
            vectors = self._find(digest.embedded) if digest.embedded not in new_numbers else None
            if vectors is not None:
                known[row] = vectors
            else:
                new_numbers.setdefault(digest.embedded, len(new_numbers))
        new_texts: list[str] = [""] * len(new_numbers)
        for row, digest in enumerate(digests):
            if row not in known:
                new_texts[new_numbers[digest.embedded]] = texts[row]
        encoded = self.encoders.encode(new_texts, self._on_batch)
        pieces = [
            known[row]
            if row in known
            else encoded.span(number := new_numbers[digest.embedded], number + 1)
            for row, digest in enumerate(digests)
        ]
        if encoded.weights is not None:
            merge_term_weights(folder, ((piece.weights, None) for piece in pieces if piece.weights))
        if encoded.tokens is not None:
            merge_token_vectors(folder, ((piece.tokens, None) for piece in pieces if piece.tokens))

    def _find(self, embedded: bytes) -> AuxiliaryVectors | None:
        position = self._places.get(embedded)
        if position is not None:
            folder, row = position
            return open_auxiliary_vectors(folder).span(row, row + 1)
        return self._held.extras_of_text(embedded) if self._held is not None else None


def open_encoders(
    sparse: SparseSettings | None, tokens: LateInteractionSettings | None, embedder: Embedder
) -> AuxiliaryEncoders | None:
    """Return the encoders that a recipe asks for, or None.

    Raises:
        CheckpointError: If a model cannot be used.
        DataError: If the embedder has no token states.
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
    """Open a masked language model as an encoder of term weights.

    Raises:
        CheckpointError: If the reference leads to none.
    """
    from stillroom.models.encoders.retrieval import SparseEncoder
    from stillroom.models.hub import resolve_checkpoint

    return SparseEncoder(resolve_checkpoint(reference), max_terms=max_terms)


def estimate_encoders(recipe: IndexSettings, passages: float, tokens: float) -> Estimate:
    """Return the estimated cost of auxiliary vectors for an index of a given size."""
    total = Estimate()
    if recipe.sparse is not None:
        size = int(passages * min(recipe.sparse.max_terms, _TERMS_PER_PASSAGE) * 8)
        total += Estimate(
            900_000_000 + 3 * size,
            2 * size,
            passages / _PASSAGES_PER_SECOND,
            "leave store.sparse out",
            "lower store.sparse.max_terms",
            f"term weights of {passages:.0f} passages by a masked language model",
        )
    if recipe.late_interaction is not None:
        width = _TOKEN_DIMENSIONS[recipe.late_interaction.model == EMBEDDER_REFERENCE]
        size = int(tokens * 1.1 * (width * recipe.late_interaction.bits / 8 + 4))
        total += Estimate(
            800_000_000,
            2 * size,
            passages / _PASSAGES_PER_SECOND,
            "leave store.late_interaction out",
            "lower store.late_interaction.bits",
            f"{tokens:.0f} token vectors of {width} numbers of {recipe.late_interaction.bits} bits",
        )
    return total
