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
    """Variations of an index and of ways to search it, measured on judged questions."""

    vary: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="settings of this recipe by dotted name, each with the values that are tried, "
        "as {chunker: [heading, {name: recursive, size: 200}]}; the first ones are compared with",
    )
    variants: list[dict[str, Any]] = Field(
        default_factory=list,
        description="single configurations beside those combinations: settings by dotted name, and "
        "way; what one leaves out is as in the first combination",
    )
    ways: list[str] = Field(
        [DEFAULT_RETRIEVER, "keyword", "dense", "hybrid"],
        min_length=1,
        description="[TRANSFORM>]RETRIEVER[+RERANKER]; the first is compared with",
    )
    questions: Reference | None = Field(
        None, description="questions that name their evidence: JSON lines, SQuAD, records"
    )
    queries: Reference | None = Field(
        None, description="in place of questions: queries of a collection"
    )
    qrels: Reference | None = Field(None, description="the judgements of those queries")
    model: str = Field("", description="what transforms and rerankers may ask")
    measure: str = Field("ndcg@10", description="what is made high")
    depth: int = Field(50, ge=1, le=1000, description="ranks that are judged")
    held_out: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the questions that have no part in choosing the best, and measure it",
    )

    @field_validator("vary")
    @classmethod
    def _resolve(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Let paths of embedders start where the recipe's other paths do."""
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
    """One index recipe and one way, with what of each axis it has."""

    choices: dict[str, str] = Field(description="the value of each axis, as it is written")
    changes: dict[str, Any] = Field(description="settings of the recipe that are set, by name")
    way: str = Field(description="how the index is searched")

    @property
    def name(self) -> str:
        """What the configuration is called: its choices on every axis that varies."""
        return ", ".join(self.choices.values())


def list_configurations(sweep: SweepSettings) -> list[Configuration]:
    """Return every combination and every variant once, the one that all are compared with first."""
    axes: dict[str, Sequence[Any]] = {**sweep.vary, "way": sweep.ways}
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    chosen = grid + [{**grid[0], **variant} for variant in sweep.variants]
    touched = {name for variant in sweep.variants for name in variant}
    shown = list(dict.fromkeys([*axes, *(name for one in chosen for name in one)]))
    shown = [
        name for name in shown if name == "way" or name in touched or len(axes.get(name, ())) > 1
    ]
    found: dict[str, Configuration] = {}
    for one in chosen:
        choices = {name: format_value(one[name]) if name in one else _UNCHANGED for name in shown}
        changes = {name: value for name, value in one.items() if name != "way"}
        configuration = Configuration(choices=choices, changes=changes, way=str(one["way"]))
        found.setdefault(configuration.name, configuration)
    return list(found.values())


def build_variant(recipe: RagRecipe, changes: dict[str, Any]) -> RagRecipe:
    """Return the recipe of an index with some settings changed, without its sweep.

    Raises:
        RecipeError: If a name is none of the recipe's, or a value does not fit it.
    """
    data: dict[str, Any] = recipe.model_dump(mode="json", exclude={"sweep"})
    for name, value in changes.items():
        place, path = data, name.split(".")
        for part in path[:-1]:
            inner = place.get(part)
            place = inner if isinstance(inner, dict) else {}
        if path[-1] not in place or path[0] in {"version", "kind", "documents", "sweep"}:
            raise _make_setting_error(
                f"'{name}' is not a setting that can vary", name, "a setting of kind rag"
            )
        place[path[-1]] = value
    try:
        return type(recipe).model_validate(data)
    except (ValidationError, RecipeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        said = ", ".join(f"{name}: {format_value(value)}" for name, value in changes.items())
        raise _make_setting_error(
            f"no index can be made with {said}: {what}", said, "values that fit"
        ) from error


def reject_sweep(recipe: RagRecipe) -> None:
    """Refuse to build one index of a recipe that asks for many.

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
    """Return a value as a person writes it on one line."""
    if isinstance(value, dict):
        rest = [f"{key}={format_value(part)}" for key, part in value.items() if key != "name"]
        name = str(value.get("name", ""))
        return f"{name}:{','.join(rest)}" if name and rest else name or ",".join(rest)
    return str(value)


def _make_setting_error(what: str, where: str, expected: str) -> RecipeError:
    return RecipeError(
        what,
        code="rag.sweep-setting",
        where=f"sweep.vary: {where}",
        expected=expected,
        next="stillroom new rag prints every setting",
    )


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

    variant: BM25Variant = Field(
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


class LateInteractionSettings(Settings):
    """Late interaction: a vector for every token of passages and questions."""

    model: Reference = Field(
        "builtin:embedder",
        description="a ColBERT checkpoint's folder; builtin:embedder takes the token states of the "
        "index's embedder",
    )
    bits: Literal[4, 8, 16, 32] = Field(
        8, description="how many a number is kept in; below 16 they are codes after a rotation"
    )


class ContextualRetrievalSettings(Settings):
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
    limits: ParseLimits = Field(
        default_factory=ParseLimits, description="how much one file may cost before it is refused"
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
    context: ContextualRetrievalSettings | None = Field(
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
    tokens: LateInteractionSettings | None = Field(
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
