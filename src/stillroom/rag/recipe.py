"""What an index is built from and how."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillroom.rag.analyzer import Stemming
from stillroom.rag.measuring.sweep_settings import SweepSettings
from stillroom.rag.storing import STORES, IndexStore
from stillroom.recipes import ENGINE, EngineChoice, Recipe, Reference, Settings
from stillroom.text.bm25 import Bm25Variant
from stillroom.text.method import CHUNKERS, Chunker, Limits

__all__ = [
    "DEFAULT_EMBEDDER",
    "ContextSettings",
    "DenseSettings",
    "KeywordSettings",
    "OriginSettings",
    "RagRecipe",
    "SparseSettings",
    "TokenSettings",
]

DEFAULT_EMBEDDER = "hub:sentence-transformers/all-MiniLM-L6-v2"


class OriginSettings(Settings):
    """Who made the documents."""

    kind: Literal["human", "synthetic", "unknown"] = Field(
        default="unknown", description="who made the documents"
    )
    license: str = Field(
        default="", description="their license as an SPDX id, empty when nobody said"
    )


class KeywordSettings(Settings):
    """BM25 over words and headings."""

    variant: Bm25Variant = Field(
        default="lucene",
        description="which BM25: Lucene's, Robertson's, ATIRE's, BM25L or BM25+",
    )
    k1: float = Field(
        default=1.2, ge=0, le=10, description="how soon more occurrences stop counting"
    )
    b: float = Field(default=0.75, ge=0, le=1, description="how much a passage's length counts")
    delta: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="what BM25L and BM25+ put under an occurrence; null takes their papers' 0.5 "
        "and 1.0",
    )
    heading_weight: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="how many words of the text one in a heading is worth",
    )
    stemming: Stemming = Field(
        default="english",
        description="language of the Snowball stemmer; auto stems each document as its own "
        "language asks; or none",
    )


class DenseSettings(Settings):
    """How vectors are searched; every score is that of the full vectors, either way."""

    search: Literal["exact", "approximate", "auto"] = Field(
        default="auto",
        description="exact compares 8-bit codes and loses nothing; approximate compares codes of "
        "one bit a dimension and scores the nearest in full; auto changes to approximate at "
        "from_passages",
    )
    from_passages: int = Field(
        default=200_000, ge=1, description="from how many passages on auto is approximate"
    )
    least_recall: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="share of the exact best ten that approximate search must find, measured when "
        "an index is built and by 'rag verify'; where none reaches it, search is exact",
    )


class SparseSettings(Settings):
    """Learned sparse search: a masked language model weighs the terms of passages and questions."""

    model: Reference = Field(
        description="a masked language model: a SPLADE checkpoint's folder, or another's"
    )
    max_terms: int = Field(
        256, ge=1, le=100_000, description="the heaviest terms that are kept of a passage"
    )


class TokenSettings(Settings):
    """Late interaction: a vector for every token of passages and questions."""

    model: Reference = Field(
        "builtin:embedder",
        description="a ColBERT checkpoint's folder; builtin:embedder takes the token states of the "
        "index's embedder",
    )
    bits: Literal[4, 8, 16, 32] = Field(
        8, description="how many a number is kept in; below 16 they are codes after a rotation"
    )


class ContextSettings(Settings):
    """A model writes where each passage stands in its document; for finding, never shown."""

    model: Reference = Field(description="what writes: a checkpoint, a .gguf file or an endpoint")
    backend: str = Field("auto", description="engine that runs it; auto chooses by what it is")
    max_tokens: int = Field(96, ge=8, le=512, description="most tokens of a context")
    document_tokens: int = Field(
        4000, ge=64, description="most tokens of the document that the model is shown"
    )
    cache: str | None = Field(
        None, description="file that keeps what was written between jobs; null keeps it in the job"
    )


class RagRecipe(Recipe):
    """Builds an index over a folder of documents."""

    kind: Literal["rag"] = Field("rag", description="builds an index")
    documents: Reference = Field(description="folder of documents, or one file")
    origin: OriginSettings = Field(default=OriginSettings(), description="who made the documents")
    limits: Limits = Field(
        default_factory=Limits, description="how much one file may cost before it is refused"
    )
    chunker: Annotated[Chunker, CHUNKERS.choice("heading")] = Field(
        "heading", validate_default=True, description="how documents are cut into passages"
    )
    engine: EngineChoice = ENGINE
    embedder: Reference = Field(
        DEFAULT_EMBEDDER, description="model that turns passages and queries into vectors"
    )
    with_headings: bool = Field(
        True, description="embed a passage with its title and headings before it; never shown"
    )
    context: ContextSettings | None = Field(
        None,
        description="have a model write where each passage stands; embedded and matched by words, "
        "never shown; not with pooling late",
    )
    pooling: Literal["passage", "late"] = Field(
        "passage",
        description="passage embeds each by itself; late pools it from token states of the whole "
        "document, without headings before it",
    )
    vectors: Literal["float32", "float16"] = Field(
        "float32", description="precision of stored vectors; float16 halves the file"
    )
    keyword: KeywordSettings = Field(
        default=KeywordSettings(), description="how words are matched and weighted"
    )
    dense: DenseSettings = Field(
        default=DenseSettings(), description="how vectors are searched: exactly or approximately"
    )
    store: Annotated[IndexStore, STORES.choice("folder")] = Field(
        "folder", validate_default=True, description="where the index lies"
    )
    sparse: SparseSettings | None = Field(
        None, description="keep term weights that a model learned, for the retriever sparse"
    )
    tokens: TokenSettings | None = Field(
        None, description="keep vectors of tokens, for the retriever multi_vector"
    )
    sweep: SweepSettings | None = Field(
        None, description="what 'stillroom rag sweep' varies and how it measures; 'run' refuses it"
    )
    metadata: Reference | None = Field(
        None,
        description="JSON lines of path, fields, tenant and labels: what is said of documents "
        "beside their bytes",
    )
    access: Literal["open", "tenants"] = Field(
        "open",
        description="open shows all to whoever opens the index; tenants shows a document only to "
        "its tenant's principals that its labels name, and to nobody where none is named",
    )
    max_failed: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of documents that may be left out; above it the job fails, and says why "
        "each could not be used",
    )

    @model_validator(mode="after")
    def _check_extras(self) -> Self:
        lacking = self.store.list_lacking({"sparse": self.sparse, "tokens": self.tokens})
        if lacking:
            raise ValueError(
                f"the store {self.store.method_name()} cannot hold {' and '.join(lacking)}: "
                "leave that out, or take the store folder"
            )
        return self

    @model_validator(mode="after")
    def _check_context(self) -> Self:
        if self.context is not None and self.pooling == "late":
            raise ValueError(
                "context is embedded before a passage, and pooling late embeds no passage by "
                "itself: choose one of them"
            )
        return self
