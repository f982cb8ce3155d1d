"""Results of a run: records and rejections per split, statistics, and the budget (``CostTracker``).

Units are requested in batches to keep the teacher busy, and cached one by one; they are filtered in
the order of the inputs, whatever the order of the requests. Neither the batch size nor an
interruption changes the result.

Statistics are added where a batch arrives, in order and once each: a copied stream carries those of
earlier steps repeatedly. Units requested ahead that never arrive are not counted, so that a report
does not depend on how far ahead the run was.

Units from the journal or a cache count as well: the budget bounds the cost of the data, not of one
session. With a server and several threads, units in progress when a bound is reached are still paid
for: on each side at most twice as many as threads.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from stillroom.jobs import DiskList, DiskRecordList
from stillroom.records import Record
from stillroom.synth.interfaces import FilterResult
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.types import RejectedRecord, Split

if TYPE_CHECKING:
    from stillroom.synth.settings import BudgetSettings

__all__ = [
    "BEYOND_TARGET",
    "CostTracker",
    "RecordBatch",
    "ScoredRecord",
    "SplitResult",
    "StepStats",
    "StepTotals",
    "interleave",
    "reject_record",
    "tee",
]

BEYOND_TARGET = FilterResult(False, "beyond the number wanted")
_COUNTS = ("units", "taken", "given", "changed", "asked", "prompt_tokens", "completion_tokens")


def reject_record(
    split: Split, name: str, verdict: FilterResult, unit: str, record: Record, step: str = ""
) -> RejectedRecord:
    """Return the row of a record that a filter rejected."""
    return RejectedRecord(
        split,
        name,
        verdict.reason,
        unit,
        verdict.score,
        record,
        limit=verdict.limit,
        against=verdict.against,
        details=verdict.details,
        step=step,
    )


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A record and its filter scores so far."""

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepStats:
    """Cost and output of one unit at one step; ``number`` is its position in the step's order.

    ``used`` names the cached values that it depends on, as cache and key.
    """

    step: str
    number: int
    units: int = 0
    taken: int = 0
    given: int = 0
    changed: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dropped: tuple[RejectedRecord, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    measured: tuple[tuple[str, Any], ...] = ()
    used: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one unit, and the statistics to add where they arrive.

    ``unit`` is the unit's key, for rejected rows that name it instead of their record.
    """

    records: tuple[ScoredRecord, ...] = ()
    stats: tuple[StepStats, ...] = ()
    unit: str = ""


@dataclass(slots=True)
class StepTotals:
    """Inputs, output, rejections and cost of one step so far."""

    step: str
    units: int = 0
    taken: int = 0
    given: int = 0
    changed: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    measured: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, stats: StepStats) -> None:
        """Add the statistics of one unit."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(stats, name))
        self.reasons.update(f"{row.filter}: {row.reason}" for row in stats.dropped)
        self.counts.update(stats.counts)
        for name, value in stats.measured:
            self.measured.setdefault(name, []).append(value)

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "dropped": dict(sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
            **({"counts": dict(sorted(self.counts.items()))} if self.counts else {}),
        }


def interleave(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yield one item of each stream in turn until all have ended."""
    active = deque(streams)
    while active:
        stream = active.popleft()
        for item in islice(stream, 1):
            yield item
            active.append(stream)


def tee(
    stream: Iterator[RecordBatch], count: int, scratch: Path, closing: ExitStack
) -> list[Iterator[RecordBatch]]:
    """Copy a stream; items that only some copies have read are stored in a file.

    Every copy carries the statistics, which are identified by their numbers. The file is closed
    with ``closing``.
    """
    if count == 1:
        return [stream]
    scratch.mkdir(parents=True, exist_ok=True)
    file = closing.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115  # it is one
    spool = _Spool(stream, file)
    return [spool.read() for _ in range(count)]


class _Spool:
    """A stream that is written to a file as it is read, for several readers."""

    def __init__(self, stream: Iterator[RecordBatch], file: IO[bytes]) -> None:
        self._stream, self._file = stream, file
        self._end = 0
        self._is_done = False

    def read(self) -> Iterator[RecordBatch]:
        position = 0
        while True:
            if position == self._end and not self._pull():
                return
            self._file.seek(position)
            batch: RecordBatch = pickle.load(self._file)  # noqa: S301  # written below
            position = self._file.tell()
            yield batch

    def _pull(self) -> bool:
        if self._is_done:
            return False
        batch = next(self._stream, None)
        if batch is None:
            self._is_done = True
            return False
        self._file.seek(self._end)
        pickle.dump(batch, self._file)
        self._end = self._file.tell()
        return True


@dataclass(slots=True)
class SplitResult:
    """Result of one side of the split: records, rejected rows, and the totals of each step.

    Records, rows and scores (one for each record with scores) are stored in files; ``stats`` are
    the statistics of the records, ``used`` the cached values that they depend on.
    """

    split: Split
    records: DiskRecordList
    rejected: DiskList[RejectedRecord]
    scores: DiskList[dict[str, Any]]
    steps: dict[str, StepTotals]
    units: int = 0
    requests: int = 0
    parsed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    changed: int = 0
    trimmed: int = 0
    filter_summaries: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    stats: RecordStats = field(default_factory=RecordStats)
    used: dict[str, None] = field(default_factory=dict)
    _counted: dict[str, _CountedNumbers] = field(
        default_factory=lambda: defaultdict(_CountedNumbers)
    )

    @classmethod
    def open(
        cls, split: Split, steps: Iterable[str], folder: Path, closing: ExitStack
    ) -> SplitResult:
        """Return an empty result; its files in ``folder`` are closed with ``closing``."""
        folder.mkdir(parents=True, exist_ok=True)
        records = DiskRecordList(folder / f"{split}-kept.jsonl")
        rows = folder / f"{split}-dropped.jsonl"
        rejected = DiskList(rows, RejectedRecord.to_exact_json, RejectedRecord.from_json)
        scores: DiskList[dict[str, Any]] = DiskList(folder / f"{split}-scores.jsonl", dict, dict)
        return cls(
            split,
            closing.enter_context(records),
            closing.enter_context(rejected),
            closing.enter_context(scores),
            {name: StepTotals(name) for name in steps},
        )

    def add(self, batch: RecordBatch, target: int) -> None:
        """Add a batch's statistics, and its records up to the target."""
        for stats in batch.stats:
            if not self._counted[stats.step].add(stats.number):
                continue
            self.steps[stats.step].add(stats)
            self.units += stats.units if stats.asked else 0
            self.requests += stats.asked
            self.prompt_tokens += stats.prompt_tokens
            self.completion_tokens += stats.completion_tokens
            self.parsed += stats.given if stats.asked else 0
            self.changed += stats.changed
            self.used.update(dict.fromkeys(stats.used))
            for row in stats.dropped:
                self._reject(row)
        for scored in batch.records:
            record = scored.record
            if len(self.records) < target:
                self.trimmed += "written" in record.fields
                self.stats.add(record)
                self.records.append(record)
                if scored.scores:
                    rounded = {name: round(value, 6) for name, value in scored.scores.items()}
                    self.scores.append({"id": record.id, "scores": rounded})
            else:
                self._reject(reject_record(self.split, "target", BEYOND_TARGET, record.id, record))

    def count_reasons(self) -> dict[str, int]:
        """Count the rejected rows by ``filter: reason``, commonest first."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])))

    def _reject(self, row: RejectedRecord) -> None:
        self.reasons[f"{row.filter}: {row.reason}"] += 1
        self.rejected.append(row)


class _CountedNumbers:
    """Numbers of a step's statistics added so far: all below a bound, and a few beyond it."""

    def __init__(self) -> None:
        self._below = 0
        self._beyond: set[int] = set()

    def add(self, number: int) -> bool:
        """Mark a number as added; return whether it was new."""
        if number < self._below or number in self._beyond:
            return False
        self._beyond.add(number)
        while self._below in self._beyond:
            self._beyond.remove(self._below)
            self._below += 1
        return True


_MILLION = 1e6


class CostTracker:
    """Counter of requests, tokens, cost and minutes over both sides of the split."""

    def __init__(self, budget: BudgetSettings) -> None:
        self.budget = budget
        self._results: list[SplitResult] = []
        self._started = time.monotonic()

    def add_split(self, result: SplitResult) -> None:
        """Count a side of the split from now on."""
        self._results.append(result)

    @property
    def requests(self) -> int:
        """Number of requests."""
        return sum(result.requests for result in self._results)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return sum(result.prompt_tokens + result.completion_tokens for result in self._results)

    @property
    def cost(self) -> float:
        """Cost of the tokens at the recipe's prices."""
        prompt_tokens = sum(result.prompt_tokens for result in self._results)
        completion_tokens = sum(result.completion_tokens for result in self._results)
        return (
            prompt_tokens * self.budget.input_price + completion_tokens * self.budget.output_price
        ) / _MILLION

    def reached(self, share: float = 1.0) -> str:
        """Return the bound that is reached, as text; empty if there is none.

        Args:
            share: Share of every bound; the side that runs first may not spend all of it.
        """
        budget = self.budget
        minutes = (time.monotonic() - self._started) / 60
        for name, bound, spent in (
            ("requests", budget.requests, self.requests),
            ("tokens", budget.tokens, self.tokens),
            ("cost", budget.cost, self.cost),
            ("minutes", budget.minutes, minutes),
        ):
            if bound is not None and spent >= bound * share:
                return f"budget.{name}: {bound:g} is spent"
        return ""

    def note(self) -> str:
        """Return the amount spent, for the progress line."""
        priced = self.budget.input_price or self.budget.output_price
        return f"{self.tokens} tokens" + (f", {self.cost:.4g} of cost" if priced else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values that do not depend on the clock."""
        totals = {"asks": self.requests, "tokens": self.tokens, "money": round(self.cost, 6)}
        prices = {"input": self.budget.input_price, "output": self.budget.output_price}
        return totals | ({"prices": prices} if any(prices.values()) else {})
