"""Embeddings of passages: one vector each, and token vectors where the index keeps them.

Vectors are cached by the digest of their text, prefixes included, within one embedder and dtype.
The encoder of tokens reads the same text as the embedder, prefixes included, so that reused texts
have reusable token vectors, too.
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
from stillroom.rag.types import EmbeddingDigest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.models.encoders.retrieval import MultiVectorEncoder
    from stillroom.rag.index_settings import IndexSettings
    from stillroom.rag.interfaces import LateInteractionSettings
    from stillroom.rag.storage.protocol import ReusableContent
    from stillroom.records import Passage

__all__ = [
    "PassageEmbedder",
    "TokenVectorCache",
    "TokenWriter",
    "estimate_token_vectors",
    "open_token_writer",
]


_BATCH = 32


class PassageEmbedder:
    """Embeds texts that neither this job nor the previous index has embedded."""

    def __init__(
        self,
        embedder: Embedder,
        dtype: str,
        check: Callable[[], None],
        reusable: ReusableContent | None = None,
    ) -> None:
        """Create an embedder of passages for one index.

        Args:
            embedder: Embedding model.
            dtype: Data type of the stored vectors.
            check: Called before each batch; raises to stop.
            reusable: Reusable content of an index with the same embedder and dtype.
        """
        self.embedder, self.dtype, self.check, self.held = embedder, dtype, check, reusable
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
            self.check()
            rows = new_rows[start : start + _BATCH]
            block, flags = self._embed_batch([texts[row] for row in rows])
            _check_vectors(path, [passages[row] for row in rows], block, self.embedder.dimensions)
            matrix[rows] = np.asarray(block, dtype=self.dtype)
            for row, flag in zip(rows, flags, strict=True):
                truncated[row] = flag
            self.embedded += len(rows)
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


_PASSAGES_PER_SECOND = 15
_TOKEN_DIMENSIONS = {True: 384, False: 128}  # of an embedder's token states, and of ColBERT's


class TokenWriter:
    """Encoder of the token vectors that a recipe asks for."""

    def __init__(self, settings: LateInteractionSettings, model: MultiVectorEncoder) -> None:
        """Store settings and model; callers use ``open_token_writer``."""
        self._bits, self._model = settings.bits, model
        self.settings = {**settings.model_dump(mode="json"), "fingerprint": model.fingerprint}

    @property
    def parents(self) -> list[Parent]:
        """Parents in artifact.json: the model, if it has files of its own."""
        reference, fingerprint = self.settings["model"], self.settings["fingerprint"]
        is_own = reference != EMBEDDER_REFERENCE
        return [Parent("tokens", reference, fingerprint, "checkpoint")] if is_own else []

    def encode(self, texts: Sequence[str], check: Callable[[], None]) -> TokenVectors:
        """Return the token vectors of texts; ``check`` is called before each batch."""
        vectors: list[Any] = []
        for start in range(0, len(texts), _BATCH):
            check()
            vectors += self._model.encode(texts[start : start + _BATCH], kind="passage")
        return TokenVectors.join(vectors, self._model.width, bits=self._bits)


class TokenVectorCache:
    """Encodes the tokens of texts that neither this job nor the previous index has encoded."""

    def __init__(
        self, writer: TokenWriter, check: Callable[[], None], reusable: ReusableContent | None
    ) -> None:
        """Create a cache of token vectors for one index.

        Args:
            writer: Encoder of new texts.
            check: Called before each batch; raises to stop.
            reusable: Reusable content of an index with the same embedder; its token vectors are
                reused if the same encoder made them.
        """
        self.writer, self.check = writer, check
        is_same = (
            reusable is not None
            and reusable.description["settings"].get("tokens") == writer.settings
        )
        self._held = reusable if is_same else None
        self._places: dict[bytes, tuple[Path, int]] = {}

    def remember(self, digests: Sequence[EmbeddingDigest], folder: Path) -> None:
        """Register the token vectors in a folder for reuse, one text for each digest."""
        for row, digest in enumerate(digests):
            self._places.setdefault(digest.embedded, (folder, row))

    def write(self, texts: Sequence[str], digests: Sequence[EmbeddingDigest], folder: Path) -> None:
        """Write the token vectors of a document's passages into a folder.

        ``folder`` exists and is empty.
        """
        known: dict[int, TokenVectors] = {}
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
        encoded = self.writer.encode(new_texts, self.check)
        pieces = [
            known[row]
            if row in known
            else encoded.span(number := new_numbers[digest.embedded], number + 1)
            for row, digest in enumerate(digests)
        ]
        merge_token_vectors(folder, ((piece, None) for piece in pieces))

    def _find(self, embedded: bytes) -> TokenVectors | None:
        position = self._places.get(embedded)
        if position is not None:
            folder, row = position
            return TokenVectors.open(folder).span(row, row + 1)
        return self._held.tokens_of_text(embedded) if self._held is not None else None


def open_token_writer(
    settings: LateInteractionSettings | None, embedder: Embedder
) -> TokenWriter | None:
    """Return the encoder of tokens that a recipe asks for, or None.

    Raises:
        CheckpointError: If the model cannot be used.
        DataError: If the embedder has no token states.
    """
    if settings is None:
        return None
    from stillroom.models.encoders.retrieval import open_multi_vector_encoder

    return TokenWriter(settings, open_multi_vector_encoder(settings.model, embedder))


def estimate_token_vectors(recipe: IndexSettings, passages: float, tokens: float) -> Estimate:
    """Return the estimated cost of the token vectors of an index of a given size."""
    settings = recipe.late_interaction
    if settings is None:
        return Estimate()
    width = _TOKEN_DIMENSIONS[settings.model == EMBEDDER_REFERENCE]
    size = int(tokens * 1.1 * (width * settings.bits / 8 + 4))
    return Estimate(
        800_000_000,
        2 * size,
        passages / _PASSAGES_PER_SECOND,
        "leave store.late_interaction out",
        "lower store.late_interaction.bits",
        f"{tokens:.0f} token vectors of {width} numbers of {settings.bits} bits",
    )
