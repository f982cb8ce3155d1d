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
"""A target that is never reached, so that all records are kept."""
_DEFAULTS: dict[str, Any] = {"generator": "grounded_qa", "filters": list(DEFAULT_FILTERS)}


class Target(Settings):
    """Target numbers of records; generation stops when they are reached."""

    train: int = Field(default=100, ge=1, description="records for training")
    held_out: int = Field(default=25, ge=0, description="records for evaluation")


class EngineSettings(EngineChoice):
    """How the teacher runs, and where: ``ray``, or ``{ray: {...}}`` among the other keys."""

    backend: str = Field(default="auto", description="engine that runs the teacher")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    context_length: int | None = Field(
        default=None,
        ge=256,
        description="tokens of prompt and completion together; default the model's",
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1024, description="concurrent requests to an endpoint; default 16"
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="requests per minute to an endpoint; default unlimited"
    )
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="tokens per minute to an endpoint; default unlimited"
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds that an endpoint may take for an answer; default 300 to the first "
        "byte, 900 in total",
    )
    others: tuple[str, ...] = Field(
        default=(),
        description="further endpoints (http://host/v1#model), used when the first fails",
    )
    weights: tuple[float, ...] = Field(
        default=(), description="shares of the requests, the model's own first, then the others'"
    )
    hedge_after_s: float | None = Field(
        default=None,
        gt=0,
        description="send a request to another endpoint too after this many seconds without an "
        "answer",
    )


class BudgetSettings(Settings):
    """Bounds that stop the generation before the target; records kept so far are written.

    The held-out side, which runs first, is limited to its share of the targets.
    """

    asks: int | None = Field(default=None, ge=1, description="maximum requests; null is unlimited")
    tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens of prompts and completions; null is unlimited",
    )
    money: float | None = Field(
        default=None, gt=0, description="maximum cost, by the prices below; null is unlimited"
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="maximum minutes of this session; null is unlimited; the records kept then "
        "depend on the clock",
    )
    input_price: float = Field(default=0.0, ge=0, description="price of a million prompt tokens")
    output_price: float = Field(
        default=0.0, ge=0, description="price of a million completion tokens"
    )

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.money is not None and not (self.input_price or self.output_price):
            raise ValueError(
                "money needs input_price and output_price, the prices it is computed from"
            )
        return self


class SynthRecipe(Recipe):
    """Generate records with a teacher, about passages or from other seeds, and filter them."""

    kind: Literal["synth"] = Field("synth", description="generate records with a teacher")
    index: Reference | None = Field(
        None,
        description="documents to write about: an index artifact, or a file of passages (JSONL) "
        "or of records, whose texts then serve as passages",
    )
    seeds: Reference | None = Field(
        None,
        description="other seeds: a file of records (tasks, personas, solutions), or a taxonomy "
        "(YAML, or a folder of qna.yaml)",
    )
    model: Reference = Field(
        DEFAULT_TEACHER, description="teacher: a checkpoint, a .gguf file or an endpoint"
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings,
        description="how the teacher runs; ray, or a group 'ray' in it, distributes the work",
    )
    generator: Annotated[Generator, GENERATORS.choice()] = Field(
        "grounded_qa", validate_default=True, description="method that generates the records"
    )
    filters: tuple[Annotated[Filter, FILTERS.choice()], ...] = Field(
        DEFAULT_FILTERS,
        validate_default=True,
        description="filters that a record must pass, in order",
    )
    budget: BudgetSettings = Field(
        default_factory=BudgetSettings,
        description="bounds that stop the generation before the target",
    )
    target: Target = Field(default_factory=Target, description="target numbers of records")
    held_out: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of documents held out for evaluation, by hash of their id; documents "
        "with equal texts stay together",
    )
    attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="maximum attempts per seed; without seeds, units per record of the target",
    )
    include_passages: int = Field(
        200, ge=0, description="maximum train passages included as plain-text records; 0 for none"
    )
    batch_size: int = Field(
        16, ge=1, le=1024, description="passages per batch; never changes the result"
    )
    cache: Destination | None = Field(
        None, description="cache file of completions, so that edited recipes send only new requests"
    )
    steps: dict[str, GraphStep] = Field(
        default_factory=dict,
        description="a graph in place of generator and filters: steps by name, in order, each "
        "with one of generator, filters and select, and its sources",
    )
    mix: MixSettings | None = Field(None, description="existing records to mix the new ones with")

    @property
    def start(self) -> str:
        """Reference of the seed items; empty if the generator needs none."""
        return self.index or self.seeds or ""

    @property
    def first(self) -> str:
        """Default source of a graph's first step."""
        return "index" if self.index else "seeds" if self.seeds else "nothing"

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """Sources of each step."""
        return resolve_sources(self.steps, self.first)

    @model_validator(mode="before")
    @classmethod
    def _prepare_graph(cls, data: Any) -> Any:
        """Set the targets of a graph to unlimited, unless the recipe sets them."""
        if not isinstance(data, dict) or not data.get("steps"):
            return data
        for name in ("generator", "filters"):
            written = data.get(name)
            if written is not None and written != _DEFAULTS[name]:
                raise make_conflict_error(name)
        if data.get("include_passages"):
            raise make_conflict_error("include_passages")
        defaults = {"target": {"train": UNLIMITED, "held_out": UNLIMITED}, "include_passages": 0}
        others = {key: value for key, value in data.items() if key not in {"generator", "filters"}}
        return {**defaults, **others}

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialize a graph without the keys of a chain, and a chain without those of a graph."""
        data = handler(self)
        for name in ("generator", "filters") if self.steps else ("steps",):
            data.pop(name, None)
        if self.mix is None:
            data.pop("mix", None)
        return dict(data)

    @model_validator(mode="before")
    @classmethod
    def _choose_filters(cls, data: Any) -> Any:
        """Use the generator's own filters if the recipe names none."""
        if not isinstance(data, dict) or "filters" in data or "generator" not in data:
            return data
        generator = data["generator"]
        name = generator.get("name") if isinstance(generator, dict) else generator
        if isinstance(generator, Generator):
            return {**data, "filters": generator.default_filters}
        if not isinstance(name, str) or name not in GENERATORS.names():
            return data  # reported where the generator itself is parsed
        return {**data, "filters": GENERATORS.get(name).default_filters}

    @model_validator(mode="after")
    def _fits_its_generator(self) -> Self:
        if self.steps:
            starts = {"index": bool(self.index), "seeds": bool(self.seeds), "nothing": True}
            problems = check_steps(self.steps, starts)
            if problems:
                raise RecipeError(problems)
            return self
        takes, name = self.generator.seed_kinds, self.generator.method_name()
        if self.index and self.seeds:
            raise _make_misfit_error(
                "index and seeds are both set", "only one of them", "remove one"
            )
        if not self.start and "nothing" not in takes:
            key = self.generator.recipe_key()
            raise _make_misfit_error(
                f"{name} needs {' or '.join(takes)}, and the recipe names none",
                f"{key}: a path",
                f"set {key}",
            )
        if self.start and takes == ("nothing",):
            raise _make_misfit_error(
                f"{name} takes no seeds", "neither index nor seeds", "remove both"
            )
        return self


def _make_misfit_error(problem: str, expected: str, next_step: str) -> RecipeError:
    return RecipeError(problem, code="synth.seeds", expected=expected, next=next_step)
