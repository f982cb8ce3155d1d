"""Settings of an index: chunker, embedder, BM25 (k1, b), vector search, contextual retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from stillroom.rag.analysis.analyzer import Stemming
from stillroom.rag.interfaces import STORES, IndexStore, LateInteractionSettings, SparseSettings
from stillroom.recipes import Reference, Settings
from stillroom.text.interfaces import CHUNKERS, PARSERS, Chunker, ParseLimits, Parser

__all__ = [
    "AUTO_EMBEDDER",
    "ApproximateSearch",
    "AutoSearch",
    "BM25Settings",
    "ContextualRetrievalSettings",
    "EmbeddingSettings",
    "ExactSearch",
    "IndexSettings",
    "OriginSettings",
]

AUTO_EMBEDDER = "builtin:auto"


def _tagged_by(name: str, classes: Mapping[str, str]) -> Discriminator:
    """Return a discriminator of a union by a field that may be left out.

    Args:
        name: Field that tells the members apart.
        classes: Class by value of the field, which is its tag; the first value is the default.
    """

    def find_tag(value: Any) -> str:
        default = next(iter(classes))
        if isinstance(value, Mapping):
            return classes.get(str(value.get(name, default)), "")
        return classes[getattr(value, name, default)]

    return Discriminator(
        find_tag,
        custom_error_type="unknown_choice",
        custom_error_message=f"Input should be a group whose {name} is one of {', '.join(classes)}",
    )


class OriginSettings(Settings):
    """Origin of the documents."""

    kind: Literal["human", "synthetic", "unknown"] = Field(
        default="unknown", description="who wrote the documents"
    )
    license: str = Field(default="", description="their license as an SPDX id, empty if unknown")


class BM25Settings(Settings):
    """BM25 over words and headings."""

    k1: float = Field(default=1.2, ge=0, le=10, description="saturation of term frequency")
    b: float = Field(default=0.75, ge=0, le=1, description="strength of length normalization")
    heading_weight: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="weight of a word in a heading, relative to one in the text",
    )
    stemming: Stemming = Field(
        default="english",
        description="language of the Snowball stemmer; auto uses each document's language; or none",
    )


class ExactSearch(Settings):
    """Vector search that compares 8-bit codes and loses nothing."""

    search: Literal["exact"] = Field(default="exact", description="search mode")


class _RecallTarget(Settings):
    least_recall: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="recall@10 against exact search that approximate search must reach, measured "
        "when an index is built and by 'rag verify'; search stays exact where it is not reached",
    )


class ApproximateSearch(_RecallTarget):
    """Vector search by codes of one bit a dimension, rescored with full vectors."""

    search: Literal["approximate"] = Field(default="approximate", description="search mode")


class AutoSearch(_RecallTarget):
    """Exact search of small indexes, approximate search of large ones."""

    search: Literal["auto"] = Field(
        default="auto",
        description="auto is approximate from from_passages; exact compares 8-bit codes and loses "
        "nothing; approximate compares codes of one bit a dimension and rescores the nearest with "
        "full vectors",
    )
    from_passages: int = Field(
        default=200_000, ge=1, description="number of passages from which search is approximate"
    )


DenseSettings = Annotated[
    Annotated[AutoSearch, Tag("AutoSearch")]
    | Annotated[ExactSearch, Tag("ExactSearch")]
    | Annotated[ApproximateSearch, Tag("ApproximateSearch")],
    _tagged_by(
        "search",
        {"auto": "AutoSearch", "exact": "ExactSearch", "approximate": "ApproximateSearch"},
    ),
]


class ContextualRetrievalSettings(Settings):
    """Contextual retrieval: a model describes each passage's context, for search only."""

    model: Reference = Field(description="text model: a checkpoint, a .gguf file or an endpoint")
    backend: str = Field(
        default="auto", description="engine that runs it; auto chooses by its format"
    )
    max_tokens: int = Field(default=96, ge=8, le=512, description="maximum tokens of a context")
    document_tokens: int = Field(
        default=4000, ge=64, description="maximum tokens of the document in the prompt"
    )
    cache: str | None = Field(
        default=None,
        description="file that keeps contexts between jobs; null keeps them in the job",
    )


class EmbeddingSettings(Settings):
    """Text that the vector of a passage is made from."""

    with_headings: bool = Field(
        default=True, description="embed a passage with its title and headings before it; not shown"
    )
    context: ContextualRetrievalSettings | None = Field(
        default=None,
        description="generate a context for each passage with a model; embedded and matched by "
        "words, not shown",
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_pooling(cls, given: Any) -> Any:
        """Leave out the only pooling there is, which the recipes of older indexes name."""
        if isinstance(given, Mapping) and given.get("pooling") == "passage":
            return {name: value for name, value in given.items() if name != "pooling"}
        return given


class IndexSettings(Settings):
    """Documents of an index, and how they are cut, embedded and stored."""

    documents: Reference = Field(description="folder of documents, or one file")
    origin: OriginSettings = Field(default=OriginSettings(), description="origin of the documents")
    limits: ParseLimits = Field(
        default_factory=ParseLimits, description="limits per file; a file above them is refused"
    )
    parsers: list[Annotated[Parser, PARSERS.choice()]] = Field(
        default=[],
        description="parsers of the files with their suffixes, such as plug-ins, in place of the "
        "detected ones",
    )
    chunker: Annotated[Chunker, CHUNKERS.choice("heading")] = Field(
        default="heading",
        validate_default=True,
        description="method that cuts documents into passages",
    )
    embedder: Reference = Field(
        default=AUTO_EMBEDDER,
        description="embedding model of passages and queries; builtin:auto is builtin:mpnet-int8 "
        "(all-mpnet-base-v2 in 8-bit integers) where it is installed, else all-MiniLM-L6-v2; or "
        "multilingual-e5-small if most documents are not in English",
    )
    embedding: EmbeddingSettings = Field(
        default=EmbeddingSettings(), description="text that the vector of a passage is made from"
    )
    vectors: Literal["float32", "float16"] = Field(
        default="float32", description="precision of stored vectors; float16 halves the file"
    )
    keyword: BM25Settings = Field(
        default=BM25Settings(), description="keyword search: BM25 and its analyzer"
    )
    dense: DenseSettings = Field(
        default=AutoSearch(),
        description="vector search: exact or approximate; scores are those of the full vectors",
    )
    store: Annotated[IndexStore, STORES.choice("folder")] = Field(
        default="folder", validate_default=True, description="storage backend of the index"
    )
    metadata: Reference | None = Field(
        default=None,
        description="JSON lines of path, fields, tenant and labels: metadata of documents "
        "that is not in their bytes",
    )
    access: Literal["open", "tenants"] = Field(
        default="open",
        description="open shows all documents to everyone who opens the index; tenants shows a "
        "document only to its tenant's principals that its labels name; without labels, to nobody",
    )
    max_failed: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="maximum share of documents that may be left out; above it the job fails and "
        "lists the reasons",
    )

    @field_validator("embedder")
    @classmethod
    def _refuse_unknown_builtin(cls, reference: str) -> str:
        if reference.startswith("builtin:") and reference != AUTO_EMBEDDER:
            from stillroom.models.hub import BUILTIN_EMBEDDERS

            if reference not in BUILTIN_EMBEDDERS:
                names = ", ".join((AUTO_EMBEDDER, *BUILTIN_EMBEDDERS))
                raise ValueError(f"there is no {reference}; one of: {names}, hub:NAME or a folder")
        return reference

    @property
    def with_headings(self) -> bool:
        """Whether a passage is embedded with its title and headings."""
        return self.embedding.with_headings

    @property
    def context(self) -> ContextualRetrievalSettings | None:
        """Settings of generated contexts; None for none."""
        return self.embedding.context

    @property
    def sparse(self) -> SparseSettings | None:
        """Settings of learned sparse search; None for none."""
        return self.store.auxiliary[0]

    @property
    def late_interaction(self) -> LateInteractionSettings | None:
        """Settings of late interaction; None for none."""
        return self.store.auxiliary[1]

    def describe(self) -> dict[str, Any]:
        """Return the settings as an index stores them, with the same keys for every shape."""
        values = self.model_dump(mode="json")
        dense = values["dense"]
        return {
            **{name: values[name] for name in _SHAPELESS},
            "dense": {name: dense.get(name, default) for name, default in _DENSE_DEFAULTS},
            "pooling": "passage",  # as in indexes that were built before, like the absent parsers
            "with_headings": self.with_headings,
            **({"parsers": values["parsers"]} if values["parsers"] else {}),
        }


_DENSE_DEFAULTS = (("search", "auto"), ("from_passages", 200_000), ("least_recall", 0.95))
_SHAPELESS = ("access", "chunker", "keyword", "limits", "origin", "vectors")
