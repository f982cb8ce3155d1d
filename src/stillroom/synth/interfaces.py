"""Base classes of generators, filters, model-scored filters and selectors.

A generator receives seeds (an item, a split, a random seed) and returns one draft for each; an item
is a passage, a record, a topic of a taxonomy, or nothing. A filter receives one record and returns
a verdict; a verifier (``stillroom.evaluate``) decides by rule, without a model. None of them reads
files or depends on the job.

A score is a function of the record alone, so that it can be computed for many records at once,
stored in a journal, and never be recomputed; the verdict on it is cheap. A record that could not be
scored is dropped as unmeasured: a failing filter never accepts a record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models import ConcurrentModel, TextModel
from stillroom.models.hub import DEFAULT_EMBEDDER
from stillroom.records import Passage, Record
from stillroom.registry import Method, Registry
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.types import (
    GenerationResult,
    GeneratorContext,
    SeedKind,
    WorkItem,
)

if TYPE_CHECKING:
    from stillroom.models.interfaces import Vectors
    from stillroom.synth.prompting.stepwise import CoroutineBatch

__all__ = [
    "EMBEDDER",
    "FILTERS",
    "GENERATORS",
    "PASSAGE_FILTERS",
    "RECORD_FILTERS",
    "SELECTORS",
    "UNANSWERED_KEY",
    "UNMEASURED",
    "BoundFilter",
    "CandidateSet",
    "Filter",
    "FilterContext",
    "FilterResult",
    "FilterState",
    "Generator",
    "GeneratorState",
    "ModelScoredFilter",
    "ScoringState",
    "Selection",
    "Selector",
    "get_concurrency",
]

PASSAGE_FILTERS = (
    "shape",
    "language",
    "refusal",
    "injection",
    "repetition",
    "question_form",
    "quality",
    "grounded",
    "duplicate",
    "decontaminate",
)
"""Default filters for questions about passages, whose answers must be grounded in them."""

RECORD_FILTERS = ("shape", "refusal", "injection", "repetition", "duplicate", "decontaminate")
"""Default filters for records without a passage."""


class GeneratorState(ABC):
    """The state of a generator on one side of the split; this base class has no memory."""

    @property
    def round_size(self) -> int:
        """Number of units generated before any is finalized; 0 without memory."""
        return 0

    @abstractmethod
    def open(self, seeds: Sequence[WorkItem], model: TextModel) -> CoroutineBatch:
        """Start the units of seeds, which can be suspended while they wait for completions.

        A draft depends on its seed, the model and the results of earlier rounds, not on the other
        seeds of its batch; seeds are batched only to keep the teacher busy.

        Raises:
            BackendError: If the model lacks a required capability.
        """

    def generate(self, seeds: Sequence[WorkItem], model: TextModel) -> Iterator[GenerationResult]:
        """Yield one draft for each seed, in order.

        Raises:
            BackendError: If the teacher fails.
        """
        return self.open(seeds, model).run()

    def finalize(self, draft: GenerationResult) -> GenerationResult:
        """Remove repetitions of earlier drafts from a draft, and remember it; here unchanged."""
        return draft


class Generator(Method, GeneratorState):
    """Base class of generators (steps, tasks), which prompt a teacher model for records.

    A generator whose requests depend on earlier results (a growing pool) overrides ``start`` and
    returns another ``GeneratorState``: units are then generated in rounds of fixed size and
    finalized in the plan's order, so that neither the number of threads nor an interruption changes
    the requests.
    """

    paper: ClassVar[str] = ""
    seed_kinds: ClassVar[tuple[SeedKind, ...]] = ("passages",)
    """Kinds of seed items it accepts; ``nothing`` means that it needs none."""
    samples_seeds: ClassVar[bool] = False
    """Whether units are numbered samples, drawn from all items together."""
    default_filters: ClassVar[tuple[str, ...]] = PASSAGE_FILTERS
    """Filters of a recipe that names none; ``RECORD_FILTERS`` if records quote no passage."""

    @classmethod
    def choose_filters(cls, settings: Mapping[str, Any]) -> Sequence[str | Mapping[str, Any]]:
        """Return the filters of a recipe that names none, by the settings it gives."""
        return cls.default_filters

    @property
    def max_requests(self) -> int:
        """Maximum number of requests per unit."""
        return 1

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Maximum number of tokens per request."""

    @property
    def unasked(self) -> str:
        """Seed items for which no request is made, as an estimate names them; empty if none."""
        return ""

    @property
    def max_records(self) -> int:
        """Maximum number of records per unit."""
        return int(getattr(self, "questions", 1))

    @classmethod
    @override
    def recipe_needs(cls) -> dict[str, int]:
        """Return the required recipe keys: index or seeds, or none."""
        return {} if cls.seed_kinds[0] == "nothing" else {cls.recipe_key(): 1}

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return the default filters if they differ from the recipe's default."""
        if cls.default_filters == PASSAGE_FILTERS:
            return {}
        return {"pipeline.filters": list(cls.default_filters)}

    @classmethod
    def recipe_key(cls) -> str:
        """Return the recipe key that names the generator's preferred seeds."""
        return "index" if cls.seed_kinds[0] == "passages" else "seeds"

    def start(self, corpus: GeneratorContext) -> GeneratorState:
        """Return the state for one side of the split."""
        return self

    def describe(self, records: Sequence[Record]) -> dict[str, Any]:
        """Return statistics of the kept training records for the report, as plain JSON values."""
        return {}


@dataclass(frozen=True, slots=True)
class FilterResult:
    """Verdict of a filter on a record.

    ``reason`` is a short fixed phrase and ``score`` the measured value; ``limit`` is the bound of
    the score, ``against`` the text that the record was compared with (another record's or an
    item's), ``details`` further facts for the rejected rows. ``changed`` is the modified record, if
    the filter changed it.
    """

    keep: bool
    reason: str = ""
    score: float = 1.0
    limit: float | None = None
    against: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    changed: Record | None = None


@dataclass(frozen=True, slots=True)
class FilterContext:
    """Context of a filter besides the record.

    ``passages`` are by id; ``frequency`` counts the passages that contain each word; ``held_out``
    are the records already accepted for evaluation (empty while those are filtered); ``models``
    opens models for the filters that score with one; ``seed`` is the recipe's.
    """

    passages: Mapping[str, Passage] = field(default_factory=dict)
    frequency: Mapping[str, int] = field(default_factory=dict)
    held_out: Sequence[Record] = ()
    models: ModelPool = field(default_factory=ModelPool)
    seed: int = 0


class FilterState(Protocol):
    """The state of a filter on one split, for filters with memory."""

    def judge(self, record: Record) -> FilterResult:
        """Return the verdict on a record, given the records accepted before."""

    def on_accept(self, record: Record) -> None:
        """Update the state with a record that every filter accepted; by default, ignore it."""
        return  # an empty body would be abstract


@dataclass(frozen=True, slots=True)
class BoundFilter(FilterState):
    """The state of a filter without memory whose verdict depends on the context."""

    decide: Callable[[Record], FilterResult]

    def judge(self, record: Record) -> FilterResult:
        """Return the verdict on a record in the context."""
        return self.decide(record)


class Filter(Method, ABC):
    """Base class of filters (validators): judge records one by one in a fixed order; none raises.

    A filter without memory overrides ``judge`` only. One that compares records overrides ``start``
    and returns a ``FilterState``.
    """

    paper: ClassVar[str] = ""
    accepts_passages: ClassVar[bool] = False
    """Whether plain-text records of passages are filtered too."""
    is_stateful: ClassVar[bool] = False
    """Whether a verdict depends on the records accepted before."""

    @abstractmethod
    def judge(self, record: Record) -> FilterResult:
        """Return the verdict on a record by itself."""

    def on_accept(self, record: Record) -> None:
        """Update the state with an accepted record; a filter without memory ignores it."""

    def start(self, context: FilterContext) -> FilterState:
        """Return the state for one split."""
        return self


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """Candidate records for a selector, in order, with the scores of the filters."""

    records: Sequence[Record]
    scores: Sequence[Mapping[str, float]]
    context: FilterContext

    def vectors(self, embedder: str) -> Vectors:
        """Embed the text of every record; return L2-normalized rows, (N, D) float32.

        Args:
            embedder: Reference of the embedder; a record without text gets a row of zeros.

        Raises:
            CheckpointError: If the reference leads to no embedder.
        """
        import numpy as np

        texts = [
            "\n\n".join(message.content for message in record.messages) for record in self.records
        ]
        filled = [index for index, text in enumerate(texts) if text.strip()]
        model = self.context.models.embedder(embedder)
        rows = np.zeros((len(texts), model.dimensions), dtype=np.float32)
        if filled:
            rows[filled] = model.embed([texts[index] for index in filled], kind="passage")
        return rows


@dataclass(frozen=True, slots=True)
class Selection:
    """Indices of the selected records, in order of selection, and a verdict on each other one."""

    kept: tuple[int, ...]
    dropped: Mapping[int, FilterResult]


class Selector(Method, ABC):
    """Base class of selectors, which choose among all records of one stream."""

    paper: ClassVar[str] = ""

    @classmethod
    @override
    def recipe_needs(cls) -> dict[str, int]:
        """Return the required recipe keys."""
        return {"index": 1}

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return steps that end in this one, after the filter whose score it uses."""
        settings = {name: info.default for name, info in cls.model_fields.items()}
        steps: dict[str, Any] = {"write": {"generator": {"name": "grounded_qa"}}}
        if settings.get("score"):
            steps["measure"] = {"filters": [{"name": settings["score"]}]}
        steps["choose"] = {"select": {"name": cls.method_name(), **settings}}
        return {"pipeline": {"steps": steps}}

    @abstractmethod
    def select(self, pool: CandidateSet) -> Selection:
        """Select records; every record is either selected or has a verdict.

        The selection does not depend on the order of the records, except among equal ones.
        """


EMBEDDER = Field(DEFAULT_EMBEDDER, description="embedder that measures similarity")
"""Setting of methods that compare meanings."""

GENERATORS = Registry("stillroom.synth.generators", Generator)
FILTERS = Registry("stillroom.synth.filters", Filter)
SELECTORS = Registry("stillroom.synth.selectors", Selector)
UNMEASURED = "could not be measured"

_RECORD_ERRORS = {
    "backend.context",
    "backend.schema",
    "backend.refused",
    "backend.answer",
}
"""Errors of a single record; any other error is the model's and ends the job."""

_TRANSIENT_ERRORS = {
    "backend.timeout",
    "backend.broken",
    "backend.malformed",
    "backend.unavailable",
}
"""Errors of a server that may answer later; one record fails as long as others are answered."""

UNANSWERED_KEY = "unanswered"
"""Key of a value that failed so: it is not stored, and the next run requests it again."""


class ScoringState(ABC):
    """The state of a model-scored filter: ``score`` is expensive, ``decide`` is not."""

    fingerprint: str = ""
    """Digest of everything a value depends on besides the record: the models and settings."""
    concurrency: int = 1
    """Number of records to score concurrently, each on its own thread."""

    def measure(self, record: Record) -> Any:
        """Return the plain JSON value of one record, for states without their own ``score``."""
        raise TypeError(f"{type(self).__name__} has neither measure nor score")

    def score(self, records: Sequence[Record]) -> list[Any]:
        """Return one plain JSON value for each record; ``{"failed": why}`` for a failed one.

        By default records are measured one by one, and the error of a single record becomes its
        value. This includes a server that did not answer; the executor ends the job if that happens
        repeatedly.

        Raises:
            BackendError: If a model fails as a whole.
        """
        values: list[Any] = []
        for record in records:
            try:
                values.append(self.measure(record))
            except BackendError as error:
                is_transient = error.code in _TRANSIENT_ERRORS
                if not is_transient and error.code not in _RECORD_ERRORS:
                    raise
                failed = {"failed": error.problems[0].what}
                values.append(failed | ({UNANSWERED_KEY: error.code} if is_transient else {}))
        return values

    @abstractmethod
    def decide(self, record: Record, value: Any) -> FilterResult:
        """Return the verdict on a scored record."""

    def judge(self, record: Record) -> FilterResult:
        """Score one record and return the verdict."""
        return self.decide_or_reject(record, self.score([record])[0])

    def decide_or_reject(self, record: Record, value: Any) -> FilterResult:
        """Return the verdict on a value; a failed one is dropped as unmeasured."""
        if isinstance(value, Mapping) and "failed" in value:
            return FilterResult(False, UNMEASURED, 0.0, details={"why": str(value["failed"])})
        return self.decide(record, value)

    def on_accept(self, record: Record) -> None:  # noqa: B027  # nothing is a sound default
        """Do nothing: a score does not depend on the accepted records."""

    def calibration_records(self) -> Sequence[Record]:
        """Return human-scored records for calibration, which are scored first."""
        return ()

    def calibrate(self, values: Sequence[Any]) -> None:  # noqa: B027  # likewise
        """Calibrate on the values of the calibration records, in their order."""

    def summarize(self, values: Sequence[Any]) -> Mapping[str, Any]:
        """Return summary statistics of all values; none by default."""
        return {}


class ModelScoredFilter(Filter, ABC):
    """Base class of filters that score with a model; outside of a run they accept every record."""

    @override
    def judge(self, record: Record) -> FilterResult:
        return FilterResult(True)

    @override
    @abstractmethod
    def start(self, context: FilterContext) -> ScoringState:
        """Return the scoring state for one split."""


def get_concurrency(models: Sequence[TextModel]) -> int:
    """Return the number of concurrent requests of the models; 1 if none is a server's."""
    return max(
        (model.concurrency for model in models if isinstance(model, ConcurrentModel)), default=1
    )
