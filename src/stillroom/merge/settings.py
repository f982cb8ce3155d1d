"""Recipe sections of a merge: tokenizer, search and smoke test."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.recipes import Duration, Reference, Settings

__all__ = [
    "HIGHER_IS_BETTER",
    "LayerPathSettings",
    "Objective",
    "SearchParameter",
    "SearchSettings",
    "SmokeSettings",
    "TokenEmbeddingSettings",
    "TokenRowReference",
    "TokenizerSettings",
]


Objective = Literal["loss", "kl", "agreement", "f1", "em"]


HIGHER_IS_BETTER = frozenset({"agreement", "f1", "em"})


class SearchParameter(Settings):
    """A searched setting, or a searched gradient along the layers."""

    setting: str = Field(description="setting of the method, or of a model: weight, density, ...")
    model: int | None = Field(
        None,
        ge=0,
        description="index of the model in 'models', from 0; null: a setting of the method",
    )
    tensors: tuple[str, ...] = Field(
        ("*",), min_length=1, description="tensors, as name patterns with * and ?"
    )
    low: float = Field(description="minimum")
    high: float = Field(description="maximum")
    layers: int | None = Field(
        None,
        ge=2,
        le=64,
        description="search a gradient with this number of knots from first layer to last",
    )

    @model_validator(mode="after")
    def _check_range(self) -> SearchParameter:
        if not self.low < self.high:
            raise ValueError("low must be less than high")
        return self

    @property
    def label(self) -> str:
        """Name in reports."""
        owner = "method" if self.model is None else f"models.{self.model}"
        where = "" if self.tensors == ("*",) else f"[{','.join(self.tensors)}]"
        return f"{owner}.{self.setting}{where}"


class LayerPathSettings(Settings):
    """Settings of a search for paths through the layers of several models."""

    models: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="indices in 'models' whose layers are used; default all"
    )
    length: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="maximum number of layers; default twice those of the first model",
    )
    repeats: int = Field(
        1, ge=1, le=8, description="number of repetitions of the list of all layers"
    )
    order: Literal["models", "layers"] = Field(
        "models",
        description="order of the list: model by model, or layer by layer: all models' "
        "first layers, then their second, ...",
    )


class SearchSettings(Settings):
    """Search settings, or a layer path, with the best score on records."""

    records: Reference = Field(description="records artifact or file to score on")
    split: str = Field(
        "held_out", description="use only records with this fields.split; empty: all"
    )
    objective: Objective = Field(
        "loss",
        description="objective: loss (nats per assistant token), kl or agreement with "
        "a teacher, f1 or em of greedy answers",
    )
    teacher: Reference | None = Field(
        None, description="reference checkpoint of kl and agreement, with the same tokenizer"
    )
    space: tuple[SearchParameter, ...] = Field((), description="searched settings")
    path: LayerPathSettings | None = Field(None, description="search a path through layers")
    method: Literal["cma", "bayes"] = Field(
        "cma", description="CMA-ES, or tree-structured Parzen estimator"
    )
    evaluations: int = Field(100, ge=1, le=100_000, description="maximum number of trials")
    time_limit: Duration | None = Field(
        None,
        gt=0,
        description="time limit of the trials, such as 30min; the result then depends on the "
        "speed of the machine",
    )
    patience: int = Field(
        0, ge=0, description="stop after this number of trials without improvement; 0: never"
    )
    population: int | None = Field(
        None,
        ge=2,
        le=1024,
        description="trials per generation; default: of cma by dimension, of bayes 1",
    )
    sigma: float = Field(
        0.2, gt=0, le=1, description="initial step of cma, as a share of the range"
    )
    finalists: int = Field(
        5, ge=1, le=100, description="number of best candidates compared again on other records"
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="local processes that score candidates; with engine: ray, the "
        "cluster's workers do",
    )
    max_records: int = Field(
        200,
        ge=12,
        description="maximum number of records: half for trials, a quarter for choice, a quarter "
        "for the final score",
    )
    max_tokens: int = Field(1024, ge=16, description="maximum tokens read per record")
    batch_tokens: int = Field(2048, ge=16, description="tokens scored per batch; bounds memory")
    max_new_tokens: int = Field(
        64, ge=1, le=8192, description="maximum tokens of an answer, for f1 and em"
    )

    def count_scored(self) -> int:
        """Return the approximate number of candidates scored on all records, without parents."""
        return self.evaluations // 2 + self.finalists

    @model_validator(mode="after")
    def _check_something_is_searched(self) -> SearchSettings:
        if not self.space and self.path is None:
            raise ValueError("set 'space' or 'path'")
        if (self.teacher is None) == (self.objective in ("kl", "agreement")):
            raise ValueError("kl and agreement need a teacher; other objectives do not use one")
        return self


class SmokeSettings(Settings):
    """Check the written result: finite, loads, generates a token, compared with its parents."""

    records: Reference | None = Field(
        None, description="records to measure perplexity on, of the result and its parents"
    )
    split: str = Field(
        "held_out", description="use only records with this fields.split; empty: all"
    )
    max_records: int = Field(32, ge=1, description="maximum number of records, sampled by the seed")
    max_tokens: int = Field(512, ge=16, description="maximum tokens read per record")
    batch_tokens: int = Field(2048, ge=16, description="tokens per batch; bounds memory")
    margin: float = Field(
        0.5, ge=0, description="warn if the loss exceeds every parent's by this many nats"
    )


class TokenRowReference(Settings):
    """An embedding row, by model and token, or by model and index."""

    model: int | Literal["base"] = Field(description="index in 'models', or base")
    token: str | None = Field(None, description="token of that model")
    row: int | None = Field(None, ge=0, description="index of the row, instead of a token")


class TokenEmbeddingSettings(Settings):
    """Source of one token's embedding row."""

    source: int | Literal["base", "zero"] | TokenRowReference | None = Field(
        None,
        description="index in 'models', base, zero, or {model, token} or {model, row}; default: "
        "the general rule",
    )
    force: bool = Field(
        False, description="use it for every model, not only for those without the token"
    )
    add: bool = Field(False, description="add the token to the vocabulary if missing")


class TokenizerSettings(Settings):
    """Vocabulary of the merged model, and the sources of its embedding rows."""

    source: Literal["base", "union"] | Annotated[int, Field(ge=0)] = Field(
        "base", description="the vocabulary: base, union, or the index of a model"
    )
    tokens: dict[str, TokenEmbeddingSettings] = Field(
        default_factory=dict, description="tokens with an explicit row"
    )
    pad_to_multiple_of: int | None = Field(
        None,
        ge=1,
        description="round the embedding's rows up to a multiple; 1: no padding; default: "
        "the rows of the vocabulary's model",
    )
