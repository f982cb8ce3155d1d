"""Recipe of an index, and of sweeps over its settings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from stillroom.errors import RecipeError
from stillroom.rag.analysis.analyzer import Stemming
from stillroom.rag.interfaces import DEFAULT_RETRIEVER, STORES, IndexStore
from stillroom.recipes import ENGINE, EngineChoice, Recipe, Reference, Settings
from stillroom.text.bm25 import BM25Variant
from stillroom.text.interfaces import CHUNKERS, Chunker, ParseLimits

__all__ = [
    "DEFAULT_EMBEDDER",
    "Configuration",
    "ContextualRetrievalSettings",
    "DenseSettings",
    "KeywordSettings",
    "LateInteractionSettings",
    "OriginSettings",
    "RagRecipe",
    "SparseSettings",
    "SweepSettings",
    "build_variant",
    "format_value",
    "list_configurations",
    "reject_sweep",
]


_UNCHANGED = "as is"


def _resolve_path(value: Any) -> str:
    reference: TypeAdapter[str] = TypeAdapter(Reference)
    return reference.validate_python(value)


class SweepSettings(Settings):
    """Variations of an index and of its pipelines, measured on judged questions."""

    vary: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="settings of this recipe by dotted name, each with its values, as "
        "{chunker: [heading, {name: recursive, size: 200}]}; the first values are the baseline",
    )
    variants: list[dict[str, Any]] = Field(
        default_factory=list,
        description="further configurations: settings by dotted name, and way; missing ones are as "
        "in the baseline",
    )
    ways: list[str] = Field(
        [DEFAULT_RETRIEVER, "keyword", "dense", "hybrid"],
        min_length=1,
        description="[TRANSFORM>]RETRIEVER[+RERANKER]; the first is the baseline",
    )
    questions: Reference | None = Field(
        None, description="questions that name their evidence: JSON lines, SQuAD, records"
    )
    queries: Reference | None = Field(
        None, description="queries of a collection, instead of questions"
    )
    qrels: Reference | None = Field(None, description="relevance judgments of those queries")
    model: str = Field("", description="text model for query transforms and rerankers")
    measure: str = Field("ndcg@10", description="measure to maximize")
    depth: int = Field(50, ge=1, le=1000, description="number of ranks that are evaluated")
    held_out: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the questions held out of the choice, on which the best is measured",
    )

    @field_validator("vary")
    @classmethod
    def _resolve(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Resolve paths of embedders like the recipe's other paths."""
        if not all(vary.values()):
            raise ValueError("give at least one value of each setting")
        return {
            name: [_resolve_path(value) for value in values] if name == "embedder" else values
            for name, values in vary.items()
        }

    @field_validator("variants")
    @classmethod
    def _resolve_each(cls, variants: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                name: _resolve_path(value) if name == "embedder" else value
                for name, value in variant.items()
            }
            for variant in variants
        ]


class Configuration(Settings):
    """One index recipe and one pipeline, with its value on each axis."""

    choices: dict[str, str] = Field(description="value on each axis, as text")
    changes: dict[str, Any] = Field(description="changed settings of the recipe, by name")
    way: str = Field(description="pipeline that searches the index")

    @property
    def name(self) -> str:
        """The values on every axis that varies, as one text."""
        return ", ".join(self.choices.values())


def list_configurations(sweep: SweepSettings) -> list[Configuration]:
    """Return every combination and every variant once, the baseline first."""
    axes: dict[str, Sequence[Any]] = {**sweep.vary, "way": sweep.ways}
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    points = grid + [{**grid[0], **variant} for variant in sweep.variants]
    variant_names = {name for variant in sweep.variants for name in variant}
    axis_names = list(dict.fromkeys([*axes, *(name for point in points for name in point)]))
    axis_names = [
        name
        for name in axis_names
        if name == "way" or name in variant_names or len(axes.get(name, ())) > 1
    ]
    configurations: dict[str, Configuration] = {}
    for point in points:
        choices = {
            name: format_value(point[name]) if name in point else _UNCHANGED for name in axis_names
        }
        changes = {name: value for name, value in point.items() if name != "way"}
        configuration = Configuration(choices=choices, changes=changes, way=str(point["way"]))
        configurations.setdefault(configuration.name, configuration)
    return list(configurations.values())


def build_variant(recipe: RagRecipe, changes: dict[str, Any]) -> RagRecipe:
    """Return the recipe of an index with some settings changed, without its sweep.

    Raises:
        RecipeError: If a name is not a setting of the recipe, or a value does not fit it.
    """
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude={"sweep"})
    for name, value in changes.items():
        section, path = data, name.split(".")
        for part in path[:-1]:
            inner = section.get(part)
            section = inner if isinstance(inner, dict) else {}
        if path[-1] not in section or path[0] in {"version", "kind", "documents", "sweep"}:
            raise _make_setting_error(
                f"'{name}' is not a setting that can vary", name, "a setting of kind rag"
            )
        section[path[-1]] = value
    try:
        return type(recipe).model_validate(data)
    except (ValidationError, RecipeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        changed = ", ".join(f"{name}: {format_value(value)}" for name, value in changes.items())
        raise _make_setting_error(
            f"no index can be made with {changed}: {reason}", changed, "values that fit"
        ) from error


def reject_sweep(recipe: RagRecipe) -> None:
    """Raise an error if a recipe describes many indexes.

    Raises:
        RecipeError: If the recipe has a sweep.
    """
    if recipe.sweep is not None:
        raise RecipeError(
            "the recipe has a sweep, which makes many indexes and keeps none",
            code="rag.sweep-recipe",
            where="sweep",
            expected="a recipe without one",
            next="stillroom rag sweep RECIPE --out DIR, then run the best.yaml that it leaves",
        )


def format_value(value: Any) -> str:
    """Return a value as one line of recipe text."""
    if isinstance(value, dict):
        settings = [f"{key}={format_value(part)}" for key, part in value.items() if key != "name"]
        name = str(value.get("name", ""))
        return f"{name}:{','.join(settings)}" if name and settings else name or ",".join(settings)
    return str(value)


def _make_setting_error(problem: str, where: str, expected: str) -> RecipeError:
    return RecipeError(
        problem,
        code="rag.sweep-setting",
        where=f"sweep.vary: {where}",
        expected=expected,
        next="stillroom new rag prints every setting",
    )


DEFAULT_EMBEDDER = "hub:sentence-transformers/all-MiniLM-L6-v2"


class OriginSettings(Settings):
    """Origin of the documents."""

    kind: Literal["human", "synthetic", "unknown"] = Field(
        default="unknown", description="who wrote the documents"
    )
    license: str = Field(default="", description="their license as an SPDX id, empty if unknown")


class KeywordSettings(Settings):
    """BM25 over words and headings."""

    variant: BM25Variant = Field(
        default="lucene",
        description="BM25 variant: Lucene's, Robertson's, ATIRE's, BM25L or BM25+",
    )
    k1: float = Field(default=1.2, ge=0, le=10, description="saturation of term frequency")
    b: float = Field(default=0.75, ge=0, le=1, description="strength of length normalization")
    delta: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="lower bound per occurrence of BM25L and BM25+; null uses their papers' 0.5 "
        "and 1.0",
    )
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


class DenseSettings(Settings):
    """Vector search; scores are those of the full vectors in every mode."""

    search: Literal["exact", "approximate", "auto"] = Field(
        default="auto",
        description="exact compares 8-bit codes and loses nothing; approximate compares codes of "
        "one bit a dimension and rescores the nearest with full vectors; auto switches to "
        "approximate at from_passages",
    )
    from_passages: int = Field(
        default=200_000, ge=1, description="number of passages from which auto is approximate"
    )
    least_recall: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="recall@10 against exact search that approximate search must reach, measured "
        "when an index is built and by 'rag verify'; search stays exact where it is not reached",
    )


class SparseSettings(Settings):
    """Learned sparse search: a masked language model weights terms of passages and queries."""

    model: Reference = Field(
        description="masked language model: a SPLADE checkpoint's folder, or another's"
    )
    max_terms: int = Field(
        256, ge=1, le=100_000, description="maximum terms per passage, the heaviest first"
    )


class LateInteractionSettings(Settings):
    """Late interaction: one vector for every token of passages and questions."""

    model: Reference = Field(
        "builtin:embedder",
        description="a ColBERT checkpoint's folder; builtin:embedder uses the token states of the "
        "index's embedder",
    )
    bits: Literal[4, 8, 16, 32] = Field(
        8, description="bits per stored number; below 16 they are codes after a rotation"
    )


class ContextualRetrievalSettings(Settings):
    """Contextual retrieval: a model describes each passage's context, for search only."""

    model: Reference = Field(description="text model: a checkpoint, a .gguf file or an endpoint")
    backend: str = Field("auto", description="engine that runs it; auto chooses by its format")
    max_tokens: int = Field(96, ge=8, le=512, description="maximum tokens of a context")
    document_tokens: int = Field(
        4000, ge=64, description="maximum tokens of the document in the prompt"
    )
    cache: str | None = Field(
        None, description="file that keeps contexts between jobs; null keeps them in the job"
    )


class RagRecipe(Recipe):
    """Recipe that builds an index over a folder of documents."""

    kind: Literal["rag"] = Field("rag", description="build an index")
    documents: Reference = Field(description="folder of documents, or one file")
    origin: OriginSettings = Field(default=OriginSettings(), description="origin of the documents")
    limits: ParseLimits = Field(
        default_factory=ParseLimits, description="limits per file; a file above them is refused"
    )
    chunker: Annotated[Chunker, CHUNKERS.choice("heading")] = Field(
        "heading", validate_default=True, description="method that cuts documents into passages"
    )
    engine: EngineChoice = ENGINE
    embedder: Reference = Field(
        DEFAULT_EMBEDDER, description="embedding model of passages and queries"
    )
    with_headings: bool = Field(
        True, description="embed a passage with its title and headings before it; not shown"
    )
    context: ContextualRetrievalSettings | None = Field(
        None,
        description="generate a context for each passage with a model; embedded and matched by "
        "words, not shown; not with pooling late",
    )
    pooling: Literal["passage", "late"] = Field(
        "passage",
        description="passage embeds each passage separately; late pools token states of the whole "
        "document, without headings before it",
    )
    vectors: Literal["float32", "float16"] = Field(
        "float32", description="precision of stored vectors; float16 halves the file"
    )
    keyword: KeywordSettings = Field(
        default=KeywordSettings(), description="keyword search: BM25 and its analyzer"
    )
    dense: DenseSettings = Field(
        default=DenseSettings(), description="vector search: exact or approximate"
    )
    store: Annotated[IndexStore, STORES.choice("folder")] = Field(
        "folder", validate_default=True, description="storage backend of the index"
    )
    sparse: SparseSettings | None = Field(
        None, description="store learned term weights, for the retriever sparse"
    )
    tokens: LateInteractionSettings | None = Field(
        None, description="store token vectors, for the retriever multi_vector"
    )
    sweep: SweepSettings | None = Field(
        None, description="variations and measure of 'stillroom rag sweep'; 'run' refuses it"
    )
    metadata: Reference | None = Field(
        None,
        description="JSON lines of path, fields, tenant and labels: metadata of documents "
        "that is not in their bytes",
    )
    access: Literal["open", "tenants"] = Field(
        "open",
        description="open shows all documents to everyone who opens the index; tenants shows a "
        "document only to its tenant's principals that its labels name; without labels, to nobody",
    )
    max_failed: float = Field(
        0.2,
        ge=0,
        le=1,
        description="maximum share of documents that may be left out; above it the job fails and "
        "lists the reasons",
    )

    @model_validator(mode="after")
    def _check_extras(self) -> Self:
        lacking = self.store.list_lacking({"sparse": self.sparse, "tokens": self.tokens})
        if lacking:
            raise ValueError(
                f"the store {self.store.method_name()} cannot hold {' and '.join(lacking)}: "
                "remove that setting, or use the store folder"
            )
        return self

    @model_validator(mode="after")
    def _check_context(self) -> Self:
        if self.context is not None and self.pooling == "late":
            raise ValueError(
                "context is embedded before a passage, and pooling late embeds no passage "
                "separately: choose one of them"
            )
        return self
