"""Recipe of a synthetic data job: seeds, teacher, generator, filters, targets and budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from stillroom.errors import RecipeError
from stillroom.recipes import Destination, EngineChoice, Recipe, Reference, Settings
from stillroom.synth.interfaces import FILTERS, GENERATORS, PASSAGE_FILTERS, Filter, Generator
from stillroom.synth.pipeline.graph import (
    GraphStep,
    check_steps,
    make_conflict_error,
    resolve_sources,
)
from stillroom.synth.selection import MixSettings

__all__ = [
    "DEFAULT_FILTERS",
    "DEFAULT_TEACHER",
    "UNLIMITED",
    "BudgetSettings",
    "EngineSettings",
    "SynthRecipe",
    "Target",
]

DEFAULT_TEACHER = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_FILTERS = PASSAGE_FILTERS
UNLIMITED = 1_000_000_000
"""A target that is never reached: all that comes is kept."""
_DEFAULTS: dict[str, Any] = {"generator": "grounded_qa", "filters": list(DEFAULT_FILTERS)}


class Target(Settings):
    """How many records are wanted; asking stops when they are kept."""

    train: int = Field(default=100, ge=1, description="records wanted for training")
    held_out: int = Field(default=25, ge=0, description="records wanted for evaluation")


class EngineSettings(EngineChoice):
    """How the teacher is run, and where: ``ray``, or ``{ray: {...}}`` beside the rest."""

    backend: str = Field(default="auto", description="engine that runs the teacher")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    context_length: int | None = Field(
        default=None,
        ge=256,
        description="tokens of prompt and completion together; default the model's",
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1024, description="requests at once to an endpoint; default 16"
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="requests a minute to an endpoint; default no bound"
    )
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="tokens a minute to an endpoint; default no bound"
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds that an endpoint may take for an answer; default 300 until it begins, "
        "900 in all",
    )
    others: tuple[str, ...] = Field(
        default=(),
        description="further endpoints (http://host/v1#model) that are asked when the first fails",
    )
    weights: tuple[float, ...] = Field(
        default=(), description="shares of the requests, the model's own first, then the others'"
    )
    hedge_after_s: float | None = Field(
        default=None,
        gt=0,
        description="ask another endpoint too after so many seconds without an answer",
    )


class BudgetSettings(Settings):
    """When asking ends although more is wanted; what is kept by then is written.

    The held-out side, which is asked for first, takes no more than its share of the targets.
    """

    asks: int | None = Field(default=None, ge=1, description="asks; null has no bound")
    tokens: int | None = Field(
        default=None, ge=1, description="tokens of prompts and completions; null has no bound"
    )
    money: float | None = Field(
        default=None, gt=0, description="money, by the prices below; null has no bound"
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="minutes of this sitting; null has no bound; which records are kept then "
        "depends on the clock",
    )
    input_price: float = Field(default=0.0, ge=0, description="of a million tokens of prompts")
    output_price: float = Field(default=0.0, ge=0, description="of a million tokens of completions")

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.money is not None and not (self.input_price or self.output_price):
            raise ValueError("money needs input_price and output_price: nothing else counts it")
        return self


class SynthRecipe(Recipe):
    """Ask a teacher for records, about passages or after other seeds, and keep what holds."""

    kind: Literal["synth"] = Field("synth", description="write records with a teacher")
    index: Reference | None = Field(
        None,
        description="documents to write about: an index artifact, or a file of passages (JSONL) or "
        "of records, whose texts are then passages",
    )
    seeds: Reference | None = Field(
        None,
        description="what else to start from: a file of records (tasks, personas, solutions), or a "
        "taxonomy (YAML, or a folder of qna.yaml)",
    )
    model: Reference = Field(
        DEFAULT_TEACHER, description="the teacher: a checkpoint, a .gguf file or an endpoint"
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings,
        description="how the teacher is run; ray, or a group 'ray' in it, spreads the work",
    )
    generator: Annotated[Generator, GENERATORS.choice()] = Field(
        "grounded_qa", validate_default=True, description="how the teacher is asked"
    )
    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        DEFAULT_FILTERS, validate_default=True, description="what a record must pass, in order"
    )
    budget: BudgetSettings = Field(
        default_factory=BudgetSettings, description="when asking ends although more is wanted"
    )
    target: Target = Field(default_factory=Target, description="how many records are wanted")
    held_out: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of documents kept for evaluation, by hash of their id; documents that "
        "say the same stay together",
    )
    attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="how often a seed may be asked about; without seeds, units for every record "
        "wanted",
    )
    include_passages: int = Field(
        200, ge=0, description="most train passages that become records of plain text; 0 is none"
    )
    batch_size: int = Field(
        16, ge=1, le=1024, description="passages asked about at once; never changes what is kept"
    )
    cache: Destination | None = Field(
        None, description="file that keeps completions, so that edited recipes ask only what is new"
    )
    steps: dict[str, GraphStep] = Field(
        default_factory=dict,
        description="a graph in place of generator and filters: steps by name, in order, each with "
        "one of generator, filters and select, and what it takes its records from",
    )
    mix: MixSettings | None = Field(
        None, description="what the new records are mixed with on their way out"
    )

    @property
    def start(self) -> str:
        """What items are read from; empty where the generator starts from nothing."""
        return self.index or self.seeds or ""

    @property
    def first(self) -> str:
        """What a graph's first step takes unless it says otherwise."""
        return "index" if self.index else "seeds" if self.seeds else "nothing"

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """What each step takes."""
        return resolve_sources(self.steps, self.first)

    @model_validator(mode="before")
    @classmethod
    def _prepare_graph(cls, data: Any) -> Any:
        """Let a graph give all that comes, unless it says how much is wanted."""
        if not isinstance(data, dict) or not data.get("steps"):
            return data
        for name in ("generator", "filters"):
            written = data.get(name)
            if written is not None and written != _DEFAULTS[name]:
                raise make_conflict_error(name)
        if data.get("include_passages"):
            raise make_conflict_error("include_passages")
        every = {"target": {"train": UNLIMITED, "held_out": UNLIMITED}, "include_passages": 0}
        rest = {key: value for key, value in data.items() if key not in {"generator", "filters"}}
        return {**every, **rest}

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write a graph without what only a chain has, and a chain without what a graph has."""
        told = handler(self)
        for name in ("generator", "filters") if self.steps else ("steps",):
            told.pop(name, None)
        if self.mix is None:
            told.pop("mix", None)
        return dict(told)

    @model_validator(mode="before")
    @classmethod
    def _choose_filters(cls, data: Any) -> Any:
        """Judge by the generator's own filters where the recipe names none."""
        if not isinstance(data, dict) or "filters" in data or "generator" not in data:
            return data
        chosen = data["generator"]
        name = chosen.get("name") if isinstance(chosen, dict) else chosen
        if isinstance(chosen, Generator):
            return {**data, "filters": chosen.default_filters}
        if not isinstance(name, str) or name not in GENERATORS.names():
            return data  # said where the generator itself is read
        return {**data, "filters": GENERATORS.get(name).default_filters}

    @model_validator(mode="after")
    def _fits_its_generator(self) -> Self:
        if self.steps:
            starts = {"index": bool(self.index), "seeds": bool(self.seeds), "nothing": True}
            problems = check_steps(self.steps, starts)
            if problems:
                raise RecipeError(problems)
            return self
        takes, name = self.generator.takes, self.generator.method_name()
        if self.index and self.seeds:
            raise _make_misfit_error(
                "index and seeds are both given", "one of them", "leave one out"
            )
        if not self.start and "nothing" not in takes:
            key = self.generator.recipe_key()
            raise _make_misfit_error(
                f"{name} starts from {' or '.join(takes)}, and the recipe names none",
                f"{key}: a path",
                f"name it under {key}",
            )
        if self.start and takes == ("nothing",):
            raise _make_misfit_error(
                f"{name} starts from nothing", "neither index nor seeds", "leave both out"
            )
        return self


def _make_misfit_error(what: str, expected: str, next_step: str) -> RecipeError:
    return RecipeError(what, code="synth.seeds", expected=expected, next=next_step)
