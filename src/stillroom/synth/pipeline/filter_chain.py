"""Filter chain: filters applied in order to a stream of records; the first rejection counts.

What a filter measures with a model is measured once for each record, many records at a time where
they are known beforehand, and kept on a shelf (a journal), so that a killed run pays nothing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from stillroom.errors import BackendError
from stillroom.provenance import digest_json
from stillroom.records import Passage, Record
from stillroom.synth.interfaces import (
    UNANSWERED_KEY,
    Filter,
    FilterContext,
    FilterResult,
    FilterState,
    ModelScoredFilter,
    ScoringState,
)
from stillroom.synth.model_pool import ModelPool

__all__ = ["FilterChain", "ScoreCache"]

_KEY_DIGITS = 12
_MISSING = object()
_MAX_UNANSWERED = 10
"""Records in a row that a model's server did not answer for, after which it is not asked on."""


class ScoreCache(Protocol):
    """Where finished work is kept: a journal, or a dict that forgets."""

    def get(self, key: str, default: object = None) -> object:
        """Return a unit's value, or the default."""

    def put(self, key: str, value: object) -> None:
        """Keep a unit's value."""


class _ActiveFilter(NamedTuple):
    name: str
    judge: FilterState
    remembers: bool
    mark: str


class FilterChain:
    """The filters at work on one stream, in the recipe's order."""

    def __init__(
        self, filters: Sequence[Filter], context: FilterContext, shelf: ScoreCache | None = None
    ) -> None:
        """Begin every filter.

        Args:
            filters: In the order in which they judge.
            context: What they may know beside a record.
            shelf: Where measures are kept; by default they are forgotten.
        """
        self._shelf = shelf
        self._ready: dict[str, Any] = {}  # measured beforehand, until it is asked for
        self._lock = threading.Lock()
        self._lost = 0
        self._engine = context.models.engine
        self._spreading = _FilterTask(tuple(filters), context) if self._engine.is_remote else None
        self._verdicts: dict[
            str, dict[int, FilterResult]
        ] = {}  # given by workers, by record and seat
        self.scores: dict[str, float] = {}
        """What each filter scored the last record that was kept."""
        self.measured: list[tuple[str, Any]] = []
        """What was measured of the last record that was judged, by filter."""
        self._seats = []
        self._values: dict[str, list[Any]] = {}
        for chosen in filters:
            judge = chosen.begin(context)
            mark = ""
            if isinstance(judge, ScoringState):
                mark = digest_json([chosen.method_name(), judge.fingerprint])[:_KEY_DIGITS]
                self._learn(judge, mark)
            self._seats.append(_ActiveFilter(chosen.method_name(), judge, chosen.remembers, mark))

    @property
    def names(self) -> list[str]:
        """The filters' names, in order."""
        return [seat.name for seat in self._seats]

    @property
    def is_costly(self) -> bool:
        """Whether any filter measures."""
        return any(seat.mark for seat in self._seats)

    @property
    def concurrency(self) -> int:
        """How many records may be measured at once."""
        return max(
            (
                seat.judge.concurrency
                for seat in self._seats
                if isinstance(seat.judge, ScoringState)
            ),
            default=2 * self._engine.num_workers if self._engine.is_remote else 1,
        )

    def spread(self, records: Sequence[Record]) -> None:
        """Have workers judge by the filters that need neither a model nor what was kept before.

        On this machine alone nothing is done: records are judged when they are asked about.
        """
        if self._spreading is None or not records:
            return
        for found in self._engine.call(self._spreading, records):
            for number, name, verdict in found:
                self._verdicts.setdefault(name, {})[number] = verdict

    def prefetch(self, records: Sequence[Record]) -> None:
        """Measure what the filters will ask for, as far as it can be known beforehand.

        Filters that remember are passed over: what they drop may have been measured for nothing.
        """
        standing = list(records)
        for number, seat in enumerate(self._seats):
            if seat.remembers or not standing:
                continue
            judge = seat.judge
            if isinstance(judge, ScoringState):
                self._measure(judge, seat.mark, standing)
            after = []
            for record in standing:
                verdict = self._judge(number, record, peek=True)
                if verdict.keep:
                    after.append(verdict.changed or record)
            standing = after

    def judge(self, record: Record) -> tuple[str, FilterResult]:
        """Return the first verdict against a record, with its filter's name, or the last for it.

        Where a filter changed the record, the verdict's ``changed`` is what it has become.
        """
        current, verdict = record, FilterResult(True)
        self.measured = []
        scores: dict[str, float] = {}
        for number, seat in enumerate(self._seats):
            verdict = self._judge(number, current)
            if verdict.changed is not None:
                current = verdict.changed
            if not verdict.keep:
                self._forget(record, current)
                for other in self._seats if self._ready else ():
                    self._ready.pop(_cache_key(other.mark, current), None)
                return seat.name, verdict
            scores[seat.name] = verdict.score
        self._forget(record, current)
        self.scores = scores
        return "", replace(verdict, changed=current if current is not record else None)

    def admit(self, record: Record) -> None:
        """Tell every filter that the record is kept, as it has become."""
        for seat in self._seats:
            seat.judge.admit(record)

    def summarize(
        self, values: Mapping[str, Sequence[Any]] | None = None
    ) -> dict[str, Mapping[str, Any]]:
        """Return what the measuring filters say of values by filter; by default of all so far."""
        told: dict[str, Mapping[str, Any]] = {}
        known = self._values if values is None else values
        for seat in self._seats:
            if isinstance(seat.judge, ScoringState) and known.get(seat.name):
                summary = seat.judge.summarize(known[seat.name])
                if summary:
                    told[seat.name] = dict(summary)
        return told

    def _forget(self, *records: Record) -> None:
        """Forget the verdicts of workers on a record that is through."""
        for record in records if self._verdicts else ():
            self._verdicts.pop(record.id, None)

    def _judge(self, number: int, record: Record, *, peek: bool = False) -> FilterResult:
        seat = self._seats[number]
        if not isinstance(seat.judge, ScoringState):
            known = self._verdicts.get(record.id, {}).get(number) if self._verdicts else None
            return known or seat.judge.judge(record)
        key = _cache_key(seat.mark, record)
        (value,) = self._measure(seat.judge, seat.mark, [record])
        if not peek:
            self.measured.append((seat.name, value))
            self._values.setdefault(seat.name, []).append(value)
            self._ready.pop(key, None)
        return seat.judge.decide(record, value)

    def _measure(self, judge: ScoringState, mark: str, records: Sequence[Record]) -> list[Any]:
        """Return the measures of records: those that are known, and the others measured now."""
        keys = [_cache_key(mark, record) for record in records]
        found = {key: self._look_up(key) for key in keys}
        missing = {
            key: record for key, record in zip(keys, records, strict=True) if found[key] is _MISSING
        }
        if missing:
            values = judge.measure(list(missing.values()))
            for key, value in zip(missing, values, strict=True):
                is_lost = isinstance(value, Mapping) and UNANSWERED_KEY in value
                self._watch(value if is_lost else None)
                found[key] = value if is_lost else self._keep(key, value)
        self._ready.update(found)
        return [found[key] for key in keys]

    def _watch(self, lost: Mapping[str, Any] | None) -> None:
        """Count records in a row that had no answer.

        Raises:
            BackendError: If they are so many that the server is gone.
        """
        with self._lock:
            self._lost = self._lost + 1 if lost is not None else 0
            if lost is None or self._lost < _MAX_UNANSWERED:
                return
        raise BackendError(
            f"{self._lost} records in a row could not be measured: {lost['failed']}",
            code=str(lost[UNANSWERED_KEY]),
            expected="a model that answers",
            next="run the same command again with --resume when it does",
        )

    def _look_up(self, key: str) -> Any:
        if key in self._ready:
            return self._ready[key]
        if self._shelf is None:
            return _MISSING
        with self._lock:
            return self._shelf.get(key, _MISSING)

    def _keep(self, key: str, value: Any) -> Any:
        """Put a measure on the shelf; return it as a resumed run will read it."""
        if self._shelf is None:
            return value
        with self._lock:
            self._shelf.put(key, value)
            return self._shelf.get(key)

    def _learn(self, judge: ScoringState, mark: str) -> None:
        """Have a filter measure the records that it learns from before it judges any."""
        known = judge.lessons()
        if known:
            judge.learn(self._measure(judge, mark, known))
            self._ready.clear()


@dataclass(frozen=True, eq=False)
class _FilterTask:
    """The work of a worker: judge by the filters whose verdict follows from the record alone."""

    filters: tuple[Filter, ...]
    context: FilterContext
    concurrency: int = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the models here: what needs one is no part of the work."""
        known = self.context
        held_out = list(known.held_out)
        return _restore_filter_task, (
            self.filters,
            known.passages,
            known.frequency,
            held_out,
            known.seed,
        )

    def open(self) -> Callable[[Sequence[Record]], list[list[tuple[int, str, FilterResult]]]]:
        judges = [
            (number, chosen.begin(self.context))
            for number, chosen in enumerate(self.filters)
            if not chosen.remembers and not isinstance(chosen, ModelScoredFilter)
        ]

        def judge(records: Sequence[Record]) -> list[list[tuple[int, str, FilterResult]]]:
            return [list(_iter_results(record, judges)) for record in records]

        return judge


def _restore_filter_task(
    filters: tuple[Filter, ...],
    passages: Mapping[str, Passage],
    frequency: Mapping[str, int],
    held_out: Sequence[Record],
    seed: int,
) -> _FilterTask:
    return _FilterTask(filters, FilterContext(passages, frequency, held_out, ModelPool(), seed))


def _iter_results(
    record: Record, judges: Sequence[tuple[int, FilterState]]
) -> Iterator[tuple[int, str, FilterResult]]:
    """Yield each verdict with its filter's number and its record's id, up to one against it."""
    for number, judge in judges:
        verdict = judge.judge(record)
        yield number, record.id, verdict
        if not verdict.keep:
            return
        record = verdict.changed or record


def _cache_key(mark: str, record: Record) -> str:
    return f"{mark}/{record.id}"
