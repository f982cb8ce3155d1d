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
    """One number that is searched, or a gradient of them along the layers."""

    setting: str = Field(description="the method's setting, or a model's: weight, density, ...")
    model: int | None = Field(
        None, ge=0, description="whose it is, as a number in 'models' from 0; none: the method's"
    )
    tensors: tuple[str, ...] = Field(
        ("*",), min_length=1, description="for which tensors, as name patterns with * and ?"
    )
    low: float = Field(description="the least value")
    high: float = Field(description="the largest value")
    layers: int | None = Field(
        None, ge=2, le=64, description="search a gradient of so many knots from first layer to last"
    )

    @model_validator(mode="after")
    def _check_range(self) -> SearchParameter:
        if not self.low < self.high:
            raise ValueError("low must lie below high")
        return self

    @property
    def label(self) -> str:
        """What it is called in reports."""
        owner = "method" if self.model is None else f"models.{self.model}"
        where = "" if self.tensors == ("*",) else f"[{','.join(self.tensors)}]"
        return f"{owner}.{self.setting}{where}"


class LayerPathSettings(Settings):
    """Search which layer of which model comes next: paths through stacks of layers."""

    models: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="numbers in 'models' whose layers are used; default all"
    )
    length: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="most layers of the result; default twice the first model's",
    )
    repeats: int = Field(
        1, ge=1, le=8, description="how often the list of all layers is gone through"
    )
    order: Literal["models", "layers"] = Field(
        "models",
        description="the list goes through one model after the other, or through all models' "
        "first layers, then their second, ...",
    )


class SearchSettings(Settings):
    """Search settings, or a path through layers, that score best on records."""

    records: Reference = Field(description="a records artifact or file that judges")
    split: str = Field("held_out", description="only records with this fields.split; empty is all")
    objective: Objective = Field(
        "loss",
        description="what is bettered: loss (nats a token of the assistant), kl or agreement with "
        "a teacher, f1 or em of greedy answers",
    )
    teacher: Reference | None = Field(
        None, description="the checkpoint that kl and agreement compare with; same tokenizer"
    )
    space: tuple[SearchParameter, ...] = Field((), description="what is searched")
    path: LayerPathSettings | None = Field(None, description="search a path through layers")
    method: Literal["cma", "bayes"] = Field(
        "cma", description="evolution of a normal distribution, or tree-structured Parzen estimator"
    )
    evaluations: int = Field(100, ge=1, le=100_000, description="most candidates that are tried")
    time_limit: Duration | None = Field(
        None,
        gt=0,
        description="most time for the trials, as 30min; the result then depends on the clock",
    )
    patience: int = Field(
        0, ge=0, description="stop when so many candidates in a row were no better; 0 never"
    )
    population: int | None = Field(
        None,
        ge=2,
        le=1024,
        description="candidates tried before the next are chosen; default cma's own, bayes 1",
    )
    sigma: float = Field(0.2, gt=0, le=1, description="first step of cma, as a share of the range")
    finalists: int = Field(
        5, ge=1, le=100, description="best candidates that are compared again on other records"
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="processes of this machine that score candidates; with engine: ray the "
        "cluster's workers do",
    )
    max_records: int = Field(
        200, ge=12, description="most records; half search, a quarter chooses, a quarter is final"
    )
    max_tokens: int = Field(1024, ge=16, description="tokens of a record that are read")
    batch_tokens: int = Field(2048, ge=16, description="tokens scored at once; bounds memory")
    max_new_tokens: int = Field(64, ge=1, le=8192, description="longest answer, for f1 and em")

    def count_scored(self) -> int:
        """Return how many candidates are scored on about all records, parents not counted."""
        return self.evaluations // 2 + self.finalists

    @model_validator(mode="after")
    def _check_something_is_searched(self) -> SearchSettings:
        if not self.space and self.path is None:
            raise ValueError("give 'space' or 'path': what is searched")
        if (self.teacher is None) == (self.objective in ("kl", "agreement")):
            raise ValueError("kl and agreement need a teacher, and nothing else heeds one")
        return self


class SmokeSettings(Settings):
    """Check the result after it is written: finite, loads, gives a token, and how it compares."""

    records: Reference | None = Field(
        None, description="records to measure perplexity on, beside the parents'"
    )
    split: str = Field("held_out", description="only records with this fields.split; empty is all")
    max_records: int = Field(32, ge=1, description="most records measured; drawn by the seed")
    max_tokens: int = Field(512, ge=16, description="tokens of a record that are read")
    batch_tokens: int = Field(2048, ge=16, description="tokens measured at once; bounds memory")
    margin: float = Field(
        0.5, ge=0, description="warn when the loss is so many nats above every parent's"
    )


class TokenRowReference(Settings):
    """A row named by model and token, or by model and number."""

    model: int | Literal["base"] = Field(description="index into 'models', or base")
    token: str | None = Field(None, description="the token there whose row it is")
    row: int | None = Field(None, ge=0, description="the row's number, instead of a token")


class TokenEmbeddingSettings(Settings):
    """Where the embedding row of one token comes from."""

    source: int | Literal["base", "zero"] | TokenRowReference | None = Field(
        None,
        description="index into 'models', base, zero, or {model, token} or {model, row}; default "
        "by the rule",
    )
    force: bool = Field(
        False, description="for every model, not only for those that lack the token"
    )
    add: bool = Field(False, description="add the token to the vocabulary where that lacks it")


class TokenizerSettings(Settings):
    """Which tokens the merged model has, and where their embedding rows come from."""

    source: Literal["base", "union"] | Annotated[int, Field(ge=0)] = Field(
        "base", description="the vocabulary: base, union, or the index of a model"
    )
    tokens: dict[str, TokenEmbeddingSettings] = Field(
        default_factory=dict, description="tokens whose row is not chosen by the rule"
    )
    pad_to_multiple_of: int | None = Field(
        None,
        ge=1,
        description="rows of the embedding: the next multiple of it; 1 has no padding; default "
        "as many as the vocabulary's model has",
    )
