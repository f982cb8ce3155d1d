"""Results of a run: records and rejections per split, step statistics and costs.

Units are requested in batches to keep the teacher busy, and journaled one by one; they are filtered
in the plan's order, whatever the order of the requests. Neither the batch size nor an interruption
changes the result.

Statistics are added where a batch arrives, in order and once each: a copied stream carries those of
earlier steps repeatedly. Units requested ahead that never arrive are not counted, so that a report
does not depend on how far ahead the run was.

Units from the journal or a cache count as well: the budget bounds the cost of the data, not of one
session. With a server and several threads, units in progress when a bound is reached are still paid
for: on each side at most twice as many as threads.
"""

from __future__ import annotations

import json
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
from stillroom.records import Record, RecordWriter
from stillroom.synth.interfaces import FilterResult
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.types import GenerationResult, RejectedRecord, Split

if TYPE_CHECKING:
    from stillroom.synth.recipe import BudgetSettings

__all__ = [
    "CostTracker",
    "FilterChain",
    "GraphResult",
    "RecordBatch",
    "ScoredRecord",
    "SplitResult",
    "StepStats",
    "StepTotals",
    "interleave",
    "reject_record",
    "tee",
]


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


@dataclass(slots=True)
class SplitResult:
    """Result of one side of the split; ``stats`` are the statistics of the kept records."""

    split: Split
    kept: list[Record] | DiskRecordList = field(default_factory=list)
    dropped: list[RejectedRecord] | DiskList[RejectedRecord] = field(default_factory=list)
    units: int = 0
    asked: int = 0
    parsed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    trimmed: int = 0
    filter_summaries: Mapping[str, Any] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    stats: RecordStats = field(default_factory=RecordStats, compare=False, repr=False)

    @classmethod
    def spilled(cls, split: Split, folder: Path, closing: ExitStack) -> SplitResult:
        """Return a result that stores records and rows in a folder until ``closing`` closes."""
        folder.mkdir(parents=True, exist_ok=True)
        records = DiskRecordList(folder / f"{split}-kept.jsonl")
        rows = folder / f"{split}-dropped.jsonl"
        dropped = DiskList(rows, RejectedRecord.to_exact_json, RejectedRecord.from_json)
        return cls(split, closing.enter_context(records), closing.enter_context(dropped))

    def drop(self, row: RejectedRecord) -> None:
        """Add a rejected row."""
        self.reasons[f"{row.filter}: {row.reason}"] += 1
        self.dropped.append(row)

    def keep(self, record: Record) -> None:
        """Add a kept record."""
        self.trimmed += "written" in record.fields
        self.stats.add(record)
        self.kept.append(record)

    def write_to(self, writer: RecordWriter) -> None:
        """Write the kept records."""
        if isinstance(self.kept, DiskRecordList):
            self.kept.copy_to(writer)
            return
        for record in self.kept:
            writer.write(record)

    def count_reasons(self) -> dict[str, int]:
        """Count the rejected rows by ``filter: reason``, commonest first."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])))

    def add(self, draft: GenerationResult, chain: FilterChain, target: int) -> None:
        """Filter the records of a draft; those beyond ``target`` are rejected."""
        self.units += 1
        self.asked += draft.asked
        self.prompt_tokens += draft.prompt_tokens
        self.completion_tokens += draft.completion_tokens
        self.parsed += len(draft.records)
        self.counts.update(draft.counts)
        for failure in draft.failures:
            self.drop(
                RejectedRecord(
                    self.split, "generator", failure.reason, draft.key, text=failure.text
                )
            )
        if chain.needs_model and len(self.kept) < target:
            chain.prefetch(draft.records)
        for record in draft.records:
            if chain.needs_model and len(self.kept) >= target:  # do not score any further records
                self._drop(draft, "target", FilterResult(False, "beyond the number wanted"), record)
                continue
            name, verdict = chain.judge(record)
            if not verdict.keep:
                self._drop(draft, name, verdict, record)
            elif len(self.kept) >= target:
                self._drop(draft, "target", FilterResult(False, "beyond the number wanted"), record)
            else:
                accepted = verdict.changed or record
                self.changed += verdict.changed is not None
                chain.on_accept(accepted)
                self.keep(accepted)

    def _drop(
        self, draft: GenerationResult, name: str, verdict: FilterResult, record: Record
    ) -> None:
        self.drop(reject_record(self.split, name, verdict, draft.key, record))


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A record and its filter scores so far."""

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {"record": self.record.to_json(), "scores": dict(self.scores)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoredRecord:
        """Read the output of ``to_json``."""
        return cls(Record.from_json(data["record"]), data["scores"])


@dataclass(frozen=True, slots=True)
class StepStats:
    """Cost and output of one unit at one step; ``number`` is its position in the step's order."""

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

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        names = ("step", "number", "units", "taken", "given", "changed", "asked")
        counts_by_name = {
            name: getattr(self, name) for name in (*names, "prompt_tokens", "completion_tokens")
        }
        return {
            **counts_by_name,
            "dropped": [item.to_json() for item in self.dropped],
            "counts": dict(self.counts),
            "measured": [list(item) for item in self.measured],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepStats:
        """Read the output of ``to_json``."""
        dropped = tuple(RejectedRecord.from_json(row) for row in data["dropped"])
        measured = tuple((name, value) for name, value in data["measured"])
        return cls(**{**data, "dropped": dropped, "measured": measured})


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one unit, and the statistics to add where they arrive."""

    records: tuple[ScoredRecord, ...] = ()
    accounts: tuple[StepStats, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            "records": [item.to_json() for item in self.records],
            "accounts": [item.to_json() for item in self.accounts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RecordBatch:
        """Read the output of ``to_json``."""
        return cls(
            tuple(ScoredRecord.from_json(row) for row in data["records"]),
            tuple(StepStats.from_json(row) for row in data["accounts"]),
        )


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
        for name in (
            "units",
            "taken",
            "given",
            "changed",
            "asked",
            "prompt_tokens",
            "completion_tokens",
        ):
            setattr(self, name, getattr(self, name) + getattr(stats, name))
        self.reasons.update(f"{row.filter}: {row.reason}" for row in stats.dropped)
        self.counts.update(stats.counts)
        for name, value in stats.measured:
            self.measured.setdefault(name, []).append(value)

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            "units": self.units,
            "taken": self.taken,
            "given": self.given,
            "changed": self.changed,
            "asked": self.asked,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
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
            line = self._file.readline()
            position = self._file.tell()
            yield RecordBatch.from_json(json.loads(line))

    def _pull(self) -> bool:
        if self._is_done:
            return False
        batch = next(self._stream, None)
        if batch is None:
            self._is_done = True
            return False
        self._file.seek(self._end)
        text = json.dumps(batch.to_json(), ensure_ascii=False)
        self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
        self._end = self._file.tell()
        return True


@dataclass(slots=True)
class GraphResult:
    """Result of a graph on one side: records, rejected rows, and the totals of each step.

    Records, rows and scores (one for each record with scores) are stored in files.
    """

    split_result: SplitResult
    scores: DiskList[dict[str, Any]]
    steps: dict[str, StepTotals]
    filter_summaries: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _settled: dict[str, _SettledNumbers] = field(
        default_factory=lambda: defaultdict(_SettledNumbers)
    )

    @classmethod
    def open(
        cls, split: Split, steps: Iterable[str], scratch: Path, closing: ExitStack
    ) -> GraphResult:
        """Return an empty result; the files in ``scratch`` are closed with ``closing``."""
        result = SplitResult.spilled(split, scratch, closing)
        scores: DiskList[dict[str, Any]] = DiskList(scratch / "scores.jsonl", dict, dict)
        return cls(
            result, closing.enter_context(scores), {name: StepTotals(name) for name in steps}
        )

    def take(self, batch: RecordBatch, target: int) -> None:
        """Add a batch's statistics, and its records up to the target."""
        result = self.split_result
        for stats in batch.accounts:
            if not self._settled[stats.step].add(stats.number):
                continue
            self.steps[stats.step].add(stats)
            result.units += stats.units if stats.asked else 0
            result.asked += stats.asked
            result.prompt_tokens += stats.prompt_tokens
            result.completion_tokens += stats.completion_tokens
            result.parsed += stats.given if stats.asked else 0
            result.changed += stats.changed
            for row in stats.dropped:
                result.drop(row)
        for scored in batch.records:
            if len(result.kept) < target:
                result.keep(scored.record)
                if scored.scores:
                    rounded = {name: round(value, 6) for name, value in scored.scores.items()}
                    self.scores.append({"id": scored.record.id, "scores": rounded})
            else:
                verdict = FilterResult(False, "beyond the number wanted")
                result.drop(
                    reject_record(result.split, "target", verdict, scored.record.id, scored.record)
                )


class _SettledNumbers:
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
    """Counter of requests, tokens, money and minutes over both sides of the split."""

    def __init__(self, budget: BudgetSettings) -> None:
        """Start with nothing spent."""
        self.budget = budget
        self._results: list[SplitResult] = []
        self._started = time.monotonic()

    def add_split(self, result: SplitResult) -> None:
        """Count a side of the split from now on."""
        self._results.append(result)

    @property
    def asks(self) -> int:
        """Number of requests."""
        return sum(result.asked for result in self._results)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return sum(result.prompt_tokens + result.completion_tokens for result in self._results)

    @property
    def money(self) -> float:
        """Cost of the tokens at the recipe's prices."""
        prompt_cost = (
            sum(result.prompt_tokens for result in self._results) * self.budget.input_price
        )
        completion_cost = (
            sum(result.completion_tokens for result in self._results) * self.budget.output_price
        )
        return (prompt_cost + completion_cost) / _MILLION

    def reached(self, share: float = 1.0) -> str:
        """Return the bound that is reached, as text; empty if there is none.

        Args:
            share: Share of every bound; the side that runs first may not spend all of it.
        """
        budget = self.budget
        minutes = (time.monotonic() - self._started) / 60
        for name, bound, spent in (
            ("asks", budget.asks, self.asks),
            ("tokens", budget.tokens, self.tokens),
            ("money", budget.money, self.money),
            ("minutes", budget.minutes, minutes),
        ):
            if bound is not None and spent >= bound * share:
                return f"budget.{name}: {bound:g} is spent"
        return ""

    def note(self) -> str:
        """Return the amount spent, for the progress line."""
        priced = self.budget.input_price or self.budget.output_price
        return f"{self.tokens} tokens" + (f", {self.money:.4g} of money" if priced else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values that do not depend on the clock."""
        totals = {"asks": self.asks, "tokens": self.tokens, "money": round(self.money, 6)}
        prices = {"input": self.budget.input_price, "output": self.budget.output_price}
        return totals | ({"prices": prices} if any(prices.values()) else {})
