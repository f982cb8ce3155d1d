"""Results of a run: records and rejections per split, step statistics and costs.

Units are asked in groups so that the teacher is kept busy, and journaled one by one; they are
judged in the plan's order, whatever was asked when. So neither the size of a group nor a kill
changes what is kept. Knows no files but the journal.

An account is settled where the bundle arrives, in order. What was asked for ahead and never arrives
is never counted, so that a report does not depend on how far ahead work was begun.

Accounts are settled here, once each and in whatever order they come: a stream that was copied
carries those of the steps before it more than once.

Units that came from the journal or a cache count as well: what is bounded is what the data costs,
not what this sitting costs. Where a server is asked by several threads, units that were begun when
a bound was reached are still paid: on each side at most twice as many as threads.
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
from stillroom.synth.pipeline.scheduler import DraftCache
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.types import GenerationResult, RejectedRecord, Split

if TYPE_CHECKING:
    from stillroom.synth.recipe import BudgetSettings

__all__ = [
    "CostTracker",
    "DraftCache",
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
    """Return the row of a record that a filter has dropped."""
    return RejectedRecord(
        split,
        name,
        verdict.reason,
        unit,
        verdict.score,
        record,
        limit=verdict.limit,
        against=verdict.against,
        told=verdict.told,
        step=step,
    )


@dataclass(slots=True)
class SplitResult:
    """What one side of the split gave; ``tally`` is what a page says of the records kept."""

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
    told: Mapping[str, Any] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    tally: RecordStats = field(default_factory=RecordStats, compare=False, repr=False)

    @classmethod
    def spilled(cls, split: Split, folder: Path, closing: ExitStack) -> SplitResult:
        """Return one whose records and rows lie in a folder, until ``closing`` closes."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = DiskRecordList(folder / f"{split}-kept.jsonl")
        rows = folder / f"{split}-dropped.jsonl"
        dropped = DiskList(rows, RejectedRecord.to_exact_json, RejectedRecord.from_json)
        return cls(split, closing.enter_context(kept), closing.enter_context(dropped))

    def drop(self, row: RejectedRecord) -> None:
        """Put a row among what fell."""
        self.reasons[f"{row.filter}: {row.reason}"] += 1
        self.dropped.append(row)

    def keep(self, record: Record) -> None:
        """Put a record among what is kept."""
        self.trimmed += "written" in record.fields
        self.tally.add(record)
        self.kept.append(record)

    def write_to(self, writer: RecordWriter) -> None:
        """Write the records kept."""
        if isinstance(self.kept, DiskRecordList):
            self.kept.copy_to(writer)
            return
        for record in self.kept:
            writer.write(record)

    def count_reasons(self) -> dict[str, int]:
        """Return how many fell to each ``filter: reason``, commonest first."""
        return dict(sorted(self.reasons.items(), key=lambda item: (-item[1], item[0])))

    def add(self, draft: GenerationResult, panel: FilterChain, wanted: int) -> None:
        """Judge a draft; once ``wanted`` records are kept, the rest of it is not looked at."""
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
        if panel.is_costly and len(self.kept) < wanted:
            panel.prefetch(draft.records)
        for record in draft.records:
            if panel.is_costly and len(self.kept) >= wanted:  # nothing more is measured
                self._drop(draft, "target", FilterResult(False, "beyond the number wanted"), record)
                continue
            name, verdict = panel.judge(record)
            if not verdict.keep:
                self._drop(draft, name, verdict, record)
            elif len(self.kept) >= wanted:
                self._drop(draft, "target", FilterResult(False, "beyond the number wanted"), record)
            else:
                kept = verdict.changed or record
                self.changed += verdict.changed is not None
                panel.admit(kept)
                self.keep(kept)

    def _drop(
        self, draft: GenerationResult, name: str, verdict: FilterResult, record: Record
    ) -> None:
        self.drop(reject_record(self.split, name, verdict, draft.key, record))


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A record and what filters have scored it on its way."""

    record: Record
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {"record": self.record.to_json(), "scores": dict(self.scores)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoredRecord:
        """Read what ``to_json`` wrote."""
        return cls(Record.from_json(data["record"]), data["scores"])


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one unit cost and gave at one step; ``number`` is its place in the step's order."""

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
        told = {
            name: getattr(self, name) for name in (*names, "prompt_tokens", "completion_tokens")
        }
        return {
            **told,
            "dropped": [one.to_json() for one in self.dropped],
            "counts": dict(self.counts),
            "measured": [list(one) for one in self.measured],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepStats:
        """Read what ``to_json`` wrote."""
        dropped = tuple(RejectedRecord.from_json(row) for row in data["dropped"])
        measured = tuple((name, value) for name, value in data["measured"])
        return cls(**{**data, "dropped": dropped, "measured": measured})


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """The records of one unit, and every account that is to be settled where they arrive."""

    records: tuple[ScoredRecord, ...] = ()
    accounts: tuple[StepStats, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return {
            "records": [one.to_json() for one in self.records],
            "accounts": [one.to_json() for one in self.accounts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RecordBatch:
        """Read what ``to_json`` wrote."""
        return cls(
            tuple(ScoredRecord.from_json(one) for one in data["records"]),
            tuple(StepStats.from_json(one) for one in data["accounts"]),
        )


@dataclass(slots=True)
class StepTotals:
    """What one step has taken, given, dropped and cost, as far as it is settled."""

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

    def add(self, account: StepStats) -> None:
        """Settle one account."""
        for name in (
            "units",
            "taken",
            "given",
            "changed",
            "asked",
            "prompt_tokens",
            "completion_tokens",
        ):
            setattr(self, name, getattr(self, name) + getattr(account, name))
        self.reasons.update(f"{one.filter}: {one.reason}" for one in account.dropped)
        self.counts.update(account.counts)
        for name, value in account.measured:
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
            "dropped": dict(sorted(self.reasons.items(), key=lambda one: (-one[1], one[0]))),
            **({"counts": dict(sorted(self.counts.items()))} if self.counts else {}),
        }


def interleave(streams: Sequence[Iterator[T]]) -> Iterator[T]:
    """Yield one of each stream in turn until all have ended."""
    standing = deque(streams)
    while standing:
        stream = standing.popleft()
        for one in islice(stream, 1):
            yield one
            standing.append(stream)


def tee(
    stream: Iterator[RecordBatch], count: int, scratch: Path, closing: ExitStack
) -> list[Iterator[RecordBatch]]:
    """Return as many streams of the same bundles; what one has had and another not lies in a file.

    Every stream carries the accounts: whoever settles them looks at their numbers. The file is
    closed with ``closing``.
    """
    if count == 1:
        return [stream]
    scratch.mkdir(parents=True, exist_ok=True)
    file = closing.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115  # it is one
    spool = _Spool(stream, file)
    return [spool.read() for _ in range(count)]


class _Spool:
    """A stream that is written down as it is taken, and read by several at their own pace."""

    def __init__(self, stream: Iterator[RecordBatch], file: IO[bytes]) -> None:
        self._stream, self._file = stream, file
        self._end = 0
        self._is_done = False

    def read(self) -> Iterator[RecordBatch]:
        at = 0
        while True:
            if at == self._end and not self._pull():
                return
            self._file.seek(at)
            line = self._file.readline()
            at = self._file.tell()
            yield RecordBatch.from_json(json.loads(line))

    def _pull(self) -> bool:
        if self._is_done:
            return False
        bundle = next(self._stream, None)
        if bundle is None:
            self._is_done = True
            return False
        self._file.seek(self._end)
        text = json.dumps(bundle.to_json(), ensure_ascii=False)
        self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
        self._end = self._file.tell()
        return True


@dataclass(slots=True)
class GraphResult:
    """What one side of the split has given: records, rows of what fell, and each step's yield.

    Records, rows and scores (one for each record that has some) lie in files.
    """

    harvest: SplitResult
    scores: DiskList[dict[str, Any]]
    steps: dict[str, StepTotals]
    told: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _settled: dict[str, _SettledNumbers] = field(
        default_factory=lambda: defaultdict(_SettledNumbers)
    )

    @classmethod
    def open(
        cls, split: Split, steps: Iterable[str], scratch: Path, closing: ExitStack
    ) -> GraphResult:
        """Begin with nothing; the files in ``scratch`` are closed with ``closing``."""
        harvest = SplitResult.spilled(split, scratch, closing)
        scores: DiskList[dict[str, Any]] = DiskList(scratch / "scores.jsonl", dict, dict)
        return cls(
            harvest, closing.enter_context(scores), {name: StepTotals(name) for name in steps}
        )

    def take(self, bundle: RecordBatch, wanted: int) -> None:
        """Settle a bundle's accounts, and keep its records up to the number wanted."""
        harvest = self.harvest
        for account in bundle.accounts:
            if not self._settled[account.step].add(account.number):
                continue
            self.steps[account.step].add(account)
            harvest.units += account.units if account.asked else 0
            harvest.asked += account.asked
            harvest.prompt_tokens += account.prompt_tokens
            harvest.completion_tokens += account.completion_tokens
            harvest.parsed += account.given if account.asked else 0
            harvest.changed += account.changed
            for row in account.dropped:
                harvest.drop(row)
        for scored in bundle.records:
            if len(harvest.kept) < wanted:
                harvest.keep(scored.record)
                if scored.scores:
                    rounded = {name: round(value, 6) for name, value in scored.scores.items()}
                    self.scores.append({"id": scored.record.id, "scores": rounded})
            else:
                verdict = FilterResult(False, "beyond the number wanted")
                harvest.drop(
                    reject_record(harvest.split, "target", verdict, scored.record.id, scored.record)
                )


class _SettledNumbers:
    """The numbers of a step's accounts that are settled: all below one, and a few beyond it."""

    def __init__(self) -> None:
        self._below = 0
        self._beyond: set[int] = set()

    def add(self, number: int) -> bool:
        """Settle an account; return whether it was not."""
        if number < self._below or number in self._beyond:
            return False
        self._beyond.add(number)
        while self._below in self._beyond:
            self._beyond.remove(self._below)
            self._below += 1
        return True


_MILLION = 1e6


class CostTracker:
    """Counts asks, tokens, money and minutes over both sides of the split."""

    def __init__(self, budget: BudgetSettings) -> None:
        """Begin with nothing spent."""
        self.budget = budget
        self._before: list[SplitResult] = []
        self._begun = time.monotonic()

    def begin(self, harvest: SplitResult) -> None:
        """Count a side of the split from now on."""
        self._before.append(harvest)

    @property
    def asks(self) -> int:
        """How many asks were made."""
        return sum(harvest.asked for harvest in self._before)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return sum(one.prompt_tokens + one.completion_tokens for one in self._before)

    @property
    def money(self) -> float:
        """What the tokens cost at the recipe's prices."""
        paid = sum(one.prompt_tokens for one in self._before) * self.budget.input_price
        written = sum(one.completion_tokens for one in self._before) * self.budget.output_price
        return (paid + written) / _MILLION

    def reached(self, share: float = 1.0) -> str:
        """Return which bound is reached, in words; empty while there is room.

        Args:
            share: Of every bound; the side that comes first may not spend all of it.
        """
        budget = self.budget
        minutes = (time.monotonic() - self._begun) / 60
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
        """Return what was spent, for the progress line."""
        priced = self.budget.input_price or self.budget.output_price
        return f"{self.tokens} tokens" + (f", {self.money:.4g} of money" if priced else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, none of which depends on the clock."""
        told = {"asks": self.asks, "tokens": self.tokens, "money": round(self.money, 6)}
        prices = {"input": self.budget.input_price, "output": self.budget.output_price}
        return told | ({"prices": prices} if any(prices.values()) else {})
