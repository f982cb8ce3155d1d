"""Base classes of the room: generators, filters, model-scored filters and selectors.

A generator is given seeds (an item, a split, a number to draw by) and gives one draft for each; an
item is a passage, a record, a topic of a taxonomy, or nothing. A filter is given one record and
gives a verdict; a verifier, which is the floor's, decides by rule, asking no model. None of them
reads files or knows the job.

The measure is a function of the record alone, so it can be taken of many records at once, kept in a
journal, and never be taken twice; the verdict on it is free. What could not be measured is dropped
as that: a filter that fails never calls a record good.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.evaluate.interfaces import VERIFIERS, Verifier
from stillroom.models import ConcurrentModel, TextModel
from stillroom.records import Passage, Record
from stillroom.registry import Method, Registry
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.types import (
    GenerationFailure,
    GenerationResult,
    GeneratorContext,
    NoSeed,
    SeedItem,
    SeedKind,
    Split,
    Topic,
    WorkItem,
    derive_seed,
)

if TYPE_CHECKING:
    from stillroom.models.interfaces import Vectors

__all__ = [
    "FILTERS",
    "GENERATORS",
    "PASSAGE_FILTERS",
    "RECORD_FILTERS",
    "SELECTORS",
    "UNANSWERED_KEY",
    "UNMEASURED",
    "VERIFIERS",
    "CandidateSet",
    "Filter",
    "FilterContext",
    "FilterResult",
    "FilterState",
    "GenerationFailure",
    "GenerationResult",
    "Generator",
    "GeneratorContext",
    "GeneratorState",
    "ModelScoredFilter",
    "NoSeed",
    "ScoringState",
    "SeedItem",
    "SeedKind",
    "Selection",
    "Selector",
    "Split",
    "Topic",
    "Verifier",
    "WorkItem",
    "derive_seed",
    "get_concurrency",
    "score_individually",
]


PASSAGE_FILTERS = (
    "shape",
    "language",
    "refusal",
    "injection",
    "repetition",
    "question_form",
    "standalone",
    "grounded",
    "answerable",
    "duplicate",
    "decontaminate",
)
"""For questions about passages, whose answers must stand on them."""

RECORD_FILTERS = (
    "shape",
    "refusal",
    "injection",
    "repetition",
    "duplicate",
    "decontaminate",
)
"""For records that no passage bears out, in whatever form."""


class GeneratorState(Protocol):
    """A generator at work on one side of the split: it may remember what it gave."""

    @property
    def round_size(self) -> int:
        """How many units are drafted before any is settled; 0 if nothing is remembered."""

    def generate(self, seeds: Sequence[WorkItem], model: TextModel) -> Iterator[GenerationResult]:
        """Yield one draft for each seed, in order."""

    def settle(self, draft: GenerationResult) -> GenerationResult:
        """Return what is left of a draft beside those before it, and remember it."""


class Generator(Method, ABC):
    """Asks a teacher for records: about passages, after records, on topics, or out of nothing.

    A generator that needs no memory overrides ``generate`` only. One whose later asks follow from
    what earlier ones gave (a pool that grows) overrides ``begin`` and returns a Writer: units are
    then drafted in rounds of fixed size and settled in the plan's order, so that neither the number
    of threads nor a kill changes what is asked.
    """

    paper: ClassVar[str] = ""
    takes: ClassVar[tuple[SeedKind, ...]] = ("passages",)
    """Which kinds of items it can start from; ``nothing`` means that it needs none."""
    draws: ClassVar[bool] = False
    """Whether units are numbered draws, and the items only what is drawn from."""
    default_filters: ClassVar[tuple[str, ...]] = PASSAGE_FILTERS
    """What a recipe that names no filters judges by."""

    @property
    @abstractmethod
    def asks(self) -> int:
        """How many asks one unit costs, at most."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """How many tokens one ask may generate."""

    @property
    def gives(self) -> int:
        """How many records one unit gives, at most."""
        return int(getattr(self, "questions", 1))

    @property
    def round_size(self) -> int:
        """How many units are drafted before any is settled; 0 if nothing is remembered."""
        return 0

    @classmethod
    @override
    def recipe_needs(cls) -> dict[str, int]:
        """Return what a recipe must say to start from: index or seeds, or nothing."""
        return {} if cls.takes[0] == "nothing" else {cls.recipe_key(): 1}

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return the filters that fit, where they are not the recipe's own default."""
        if cls.default_filters == PASSAGE_FILTERS:
            return {}
        return {"filters": list(cls.default_filters)}

    @classmethod
    def recipe_key(cls) -> str:
        """Return which setting of a recipe names what the generator starts from first of all."""
        return "index" if cls.takes[0] == "passages" else "seeds"

    def begin(self, corpus: GeneratorContext) -> GeneratorState:
        """Return what writes one side of the split."""
        return self

    @abstractmethod
    def generate(self, seeds: Sequence[WorkItem], model: TextModel) -> Iterator[GenerationResult]:
        """Yield one draft for each seed, in order.

        A draft depends on its seed, the model and what was settled before its round, not on the
        seeds beside it; seeds come in groups only so that the teacher is kept busy.

        Raises:
            BackendError: If the teacher fails.
        """

    def settle(self, draft: GenerationResult) -> GenerationResult:
        """Return what is left of a draft beside those before it; here all of it."""
        return draft

    def describe(self, records: Sequence[Record]) -> dict[str, Any]:
        """Return what the report says of the training records kept; plain JSON values."""
        return {}


@dataclass(frozen=True, slots=True)
class FilterResult:
    """Whether a record is kept; ``reason`` is a short fixed phrase, ``score`` its measure.

    ``limit`` is the bound that the score was held against, ``against`` what the record was compared
    with (another record's or an item's words), ``told`` what else a reader of the dropped rows
    should know. ``changed`` is the record as it goes on, where the filter mended it.
    """

    keep: bool
    reason: str = ""
    score: float = 1.0
    limit: float | None = None
    against: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)
    changed: Record | None = None


@dataclass(frozen=True, slots=True)
class FilterContext:
    """What a filter may know beside the record.

    ``passages`` by id; ``frequency`` counts the passages each word occurs in; ``held_out`` are the
    records already kept for evaluation (empty while those are judged); ``models`` opens models for
    the filters that measure with one; ``seed`` is the recipe's.
    """

    passages: Mapping[str, Passage] = field(default_factory=dict)
    frequency: Mapping[str, int] = field(default_factory=dict)
    held_out: Sequence[Record] = ()
    models: ModelPool = field(default_factory=ModelPool)
    seed: int = 0


class FilterState(Protocol):
    """A filter at work on one split: it may remember what was admitted."""

    def judge(self, record: Record) -> FilterResult:
        """Return the verdict on one record, given those admitted before."""

    def admit(self, record: Record) -> None:
        """Learn that every filter kept the record."""


class Filter(Method, ABC):
    """Judges records one by one, in a fixed order; total: any record gets a verdict, none raises.

    A filter that needs no memory overrides ``judge`` only. One that compares records overrides
    ``begin`` and returns a Judge that remembers.
    """

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = False
    """Whether plain-text records of passages are judged too."""
    remembers: ClassVar[bool] = False
    """Whether a verdict depends on what was admitted before."""

    @abstractmethod
    def judge(self, record: Record) -> FilterResult:
        """Return the verdict on a record by itself."""

    def admit(self, record: Record) -> None:
        """Learn that every filter kept the record; nothing to remember here."""

    def begin(self, context: FilterContext) -> FilterState:
        """Return what judges one split."""
        return self


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """Records to choose among, in their order, and what filters scored each of them."""

    records: Sequence[Record]
    scores: Sequence[Mapping[str, float]]
    context: FilterContext

    def vectors(self, embedder: str) -> Vectors:
        """Return one L2-normalized row for each record's words, (N, D) float32.

        Args:
            embedder: Reference of the embedder; a record without words gets a row of zeros.

        Raises:
            CheckpointError: If the reference leads to no embedder.
        """
        import numpy as np

        texts = ["\n\n".join(one.content for one in record.messages) for record in self.records]
        filled = [at for at, text in enumerate(texts) if text.strip()]
        model = self.context.models.embedder(embedder)
        rows = np.zeros((len(texts), model.dimensions), dtype=np.float32)
        if filled:
            rows[filled] = model.embed([texts[at] for at in filled], kind="passage")
        return rows


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records of a pool are kept, in order of choice, and a verdict on each of the others."""

    kept: tuple[int, ...]
    dropped: Mapping[int, FilterResult]


class Selector(Method, ABC):
    """Chooses among the records of one stream, all of which it sees first."""

    paper: ClassVar[str] = ""

    @classmethod
    @override
    def recipe_needs(cls) -> dict[str, int]:
        """Return that a recipe must name what to write about."""
        return {"index": 1}

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return a graph whose last step is this one, after the filter whose score it goes by."""
        chosen = {name: info.default for name, info in cls.model_fields.items()}
        steps: dict[str, Any] = {"write": {"generator": {"name": "grounded_qa"}}}
        if chosen.get("score"):
            steps["measure"] = {"filters": [{"name": chosen["score"]}]}
        steps["choose"] = {"select": {"name": cls.method_name(), **chosen}}
        return {"generator": None, "filters": None, "include_passages": 0, "steps": steps}

    @abstractmethod
    def select(self, pool: CandidateSet) -> Selection:
        """Return what is kept; every record is either kept or has its verdict.

        The choice does not depend on the order of the pool, save between records that are equal.
        """


GENERATORS = Registry("stillroom.synth.generators", Generator)
FILTERS = Registry("stillroom.synth.filters", Filter)
SELECTORS = Registry("stillroom.synth.selectors", Selector)
UNMEASURED = "could not be measured"

_RECORD_ERRORS = {
    "backend.context",
    "backend.schema",
    "backend.refused",
    "backend.malformed",
    "backend.answer",
}
"""Errors that are one record's own; any other is the model's and ends the job."""

_TRANSIENT_ERRORS = {"backend.timeout", "backend.broken", "backend.unavailable"}
"""Errors of a server that may answer the next time: that record's own, while others are answered.
"""

UNANSWERED_KEY = "unanswered"
"""Key of a value that failed so: it is not kept, so that the next run asks again."""


class ScoringState(ABC):
    """A measured filter at work: ``measure`` costs, ``weigh`` does not."""

    fingerprint: str = ""
    """What values depend on beside the record: the models and the settings that were used."""
    concurrency: int = 1
    """How many records it gains by measuring at once, each on a thread of its own."""

    @abstractmethod
    def measure(self, records: Sequence[Record]) -> list[Any]:
        """Return one plain JSON value for each record; ``{"failed": why}`` where there is none.

        Raises:
            BackendError: If a model fails as a whole.
        """

    @abstractmethod
    def weigh(self, record: Record, value: Any) -> FilterResult:
        """Return the verdict on a record whose measure is known."""

    def judge(self, record: Record) -> FilterResult:
        """Measure one record and weigh it."""
        return self.decide(record, self.measure([record])[0])

    def decide(self, record: Record, value: Any) -> FilterResult:
        """Return the verdict on a value; what failed is dropped as unmeasured."""
        if isinstance(value, Mapping) and "failed" in value:
            return FilterResult(False, UNMEASURED, 0.0, told={"why": str(value["failed"])})
        return self.weigh(record, value)

    def admit(self, record: Record) -> None:  # noqa: B027  # nothing is a sound default
        """Remember nothing: a measure does not depend on what was kept."""

    def lessons(self) -> Sequence[Record]:
        """Return records that people have scored, which are measured before any is judged."""
        return ()

    def learn(self, values: Sequence[Any]) -> None:  # noqa: B027  # likewise
        """Learn from the values of the lessons, in their order."""

    def summarize(self, values: Sequence[Any]) -> Mapping[str, Any]:
        """Return what is to be said of all values together; nothing by default."""
        return {}


class ModelScoredFilter(Filter, ABC):
    """A filter that measures with a model; without one (outside of a run) it keeps everything."""

    paper: ClassVar[str] = ""
    remembers: ClassVar[bool] = False

    @override
    def judge(self, record: Record) -> FilterResult:
        return FilterResult(True)

    @override
    @abstractmethod
    def begin(self, context: FilterContext) -> ScoringState:
        """Return what measures the records of one split."""


def get_concurrency(models: Sequence[TextModel]) -> int:
    """Return how many requests models take at once; 1 where none is a server's."""
    return max(
        (model.concurrency for model in models if isinstance(model, ConcurrentModel)), default=1
    )


def score_individually(records: Sequence[Record], measure: Callable[[Record], Any]) -> list[Any]:
    """Measure records one after another; a fault of one record's own is that record's value.

    So is it that a server did not answer; the panel ends the job where that happens in a row.

    Raises:
        BackendError: If the model fails as a whole.
    """
    values: list[Any] = []
    for record in records:
        try:
            values.append(measure(record))
        except BackendError as error:
            if error.code not in _RECORD_ERRORS | _TRANSIENT_ERRORS:
                raise
            failed = {"failed": error.problems[0].what}
            values.append(
                failed | ({UNANSWERED_KEY: error.code} if error.code in _TRANSIENT_ERRORS else {})
            )
    return values
