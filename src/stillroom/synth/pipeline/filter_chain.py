"""Filter chain: filters in order over a stream of records; the first rejection drops the record.

Scores that need a model are computed once per record, for many records at a time where they are
known in advance, and stored in a cache (a journal), so that a resumed run does not repeat them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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
from stillroom.synth.prompting.requests import describe_resumption
from stillroom.synth.types import CacheProtocol

__all__ = ["FilterChain"]

_KEY_DIGITS = 12
_MISSING = object()
_MAX_UNANSWERED = 10
"""Consecutive records without an answer from a model's server, after which the job ends."""


class _ActiveFilter(NamedTuple):
    name: str
    state: FilterState
    is_stateful: bool
    digest: str


class FilterChain:
    """The states of the filters on one stream, in the recipe's order."""

    def __init__(
        self, filters: Sequence[Filter], context: FilterContext, cache: CacheProtocol | None = None
    ) -> None:
        """Start every filter.

        Args:
            filters: Filters in order of application.
            context: Context of the filters.
            cache: Cache of the scores; by default they are not stored.
        """
        self._cache = cache
        self._prefetched: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._num_unanswered = 0
        self._engine = context.models.engine
        self._task = _FilterTask(tuple(filters), context) if self._engine.is_remote else None
        # verdicts of workers, by record and filter index
        self._verdicts: dict[str, dict[int, FilterResult]] = {}
        self.scores: dict[str, float] = {}
        """Scores of the last accepted record, by filter."""
        self.measured: list[tuple[str, Any]] = []
        """Values of the last judged record, by filter."""
        self.used: list[str] = []
        """Cache keys of those values; with the first record, also of the calibration's."""
        self._calibrated: list[str] = []
        self._filters = []
        for settings in filters:
            state = settings.start(context)
            digest = ""
            if isinstance(state, ScoringState):
                digest = digest_json([settings.method_name(), state.fingerprint])[:_KEY_DIGITS]
                self._calibrate(state, digest)
            self._filters.append(
                _ActiveFilter(settings.method_name(), state, settings.is_stateful, digest)
            )

    @property
    def needs_model(self) -> bool:
        """Whether any filter scores with a model."""
        return any(active.digest for active in self._filters)

    @property
    def concurrency(self) -> int:
        """Number of records to score concurrently."""
        return max(
            (
                active.state.concurrency
                for active in self._filters
                if isinstance(active.state, ScoringState)
            ),
            default=2 * self._engine.num_workers if self._engine.is_remote else 1,
        )

    def apply_ahead(self, records: Sequence[Record]) -> None:
        """Have workers apply the filters that need neither a model nor earlier records.

        With the local engine nothing is done: records are judged on demand.
        """
        if self._task is None or not records:
            return
        for results in self._engine.call(self._task, records):
            for number, name, verdict in results:
                self._verdicts.setdefault(name, {})[number] = verdict

    def prefetch(self, records: Sequence[Record]) -> None:
        """Compute the scores that the filters will need, as far as they can be known in advance.

        Stateful filters are skipped: scores of records that they reject may be computed in vain.
        """
        remaining = list(records)
        for number, active in enumerate(self._filters):
            if active.is_stateful or not remaining:
                continue
            state = active.state
            if isinstance(state, ScoringState):
                self._score(state, active.digest, remaining)
            accepted = []
            for record in remaining:
                verdict = self._judge(number, record, peek=True)
                if verdict.keep:
                    accepted.append(verdict.changed or record)
            remaining = accepted

    def judge(self, record: Record) -> tuple[str, FilterResult]:
        """Return the first rejection of a record with its filter's name, or the last verdict.

        Where a filter changed the record, the verdict's ``changed`` is the new record.
        """
        current, verdict = record, FilterResult(True)
        self.measured = []
        self.used, self._calibrated = self._calibrated, []
        scores: dict[str, float] = {}
        for number, active in enumerate(self._filters):
            verdict = self._judge(number, current)
            if verdict.changed is not None:
                current = verdict.changed
            if not verdict.keep:
                self._forget(record, current)
                for later in self._filters if self._prefetched else ():
                    self._prefetched.pop(_cache_key(later.digest, current), None)
                return active.name, verdict
            scores[active.name] = verdict.score
        self._forget(record, current)
        self.scores = scores
        return "", replace(verdict, changed=current if current is not record else None)

    def on_accept(self, record: Record) -> None:
        """Notify every filter of an accepted record, with all changes applied."""
        for active in self._filters:
            active.state.on_accept(record)

    def summarize(self, values: Mapping[str, Sequence[Any]]) -> dict[str, Mapping[str, Any]]:
        """Return the summaries of the scoring filters over values by filter, as in ``measured``."""
        summaries: dict[str, Mapping[str, Any]] = {}
        for active in self._filters:
            if isinstance(active.state, ScoringState) and values.get(active.name):
                summary = active.state.summarize(values[active.name])
                if summary:
                    summaries[active.name] = dict(summary)
        return summaries

    def _forget(self, *records: Record) -> None:
        """Discard worker verdicts on records that are done."""
        for record in records if self._verdicts else ():
            self._verdicts.pop(record.id, None)

    def _judge(self, number: int, record: Record, *, peek: bool = False) -> FilterResult:
        active = self._filters[number]
        if not isinstance(active.state, ScoringState):
            known = self._verdicts.get(record.id, {}).get(number) if self._verdicts else None
            return known or active.state.judge(record)
        key = _cache_key(active.digest, record)
        (value,) = self._score(active.state, active.digest, [record])
        if not peek:
            self.measured.append((active.name, value))
            self.used.append(key)
            self._prefetched.pop(key, None)
        return active.state.decide_or_reject(record, value)

    def _score(self, state: ScoringState, digest: str, records: Sequence[Record]) -> list[Any]:
        """Return the scores of records: the cached ones, and the others computed now."""
        keys = [_cache_key(digest, record) for record in records]
        values_by_key = {key: self._look_up(key) for key in keys}
        missing = {
            key: record
            for key, record in zip(keys, records, strict=True)
            if values_by_key[key] is _MISSING
        }
        if missing:
            values = state.score(list(missing.values()))
            for key, value in zip(missing, values, strict=True):
                is_unanswered = isinstance(value, Mapping) and UNANSWERED_KEY in value
                self._watch(value if is_unanswered else None)
                values_by_key[key] = value if is_unanswered else self._store(key, value)
        self._prefetched.update(values_by_key)
        return [values_by_key[key] for key in keys]

    def _watch(self, unanswered: Mapping[str, Any] | None) -> None:
        """Count consecutive records without an answer.

        Raises:
            BackendError: If there are so many that the server is considered down.
        """
        with self._lock:
            self._num_unanswered = self._num_unanswered + 1 if unanswered is not None else 0
            if unanswered is None or self._num_unanswered < _MAX_UNANSWERED:
                return
        raise BackendError(
            f"{self._num_unanswered} consecutive records could not be scored: "
            f"{unanswered['failed']}",
            code=(code := str(unanswered[UNANSWERED_KEY])),
            expected="a model that answers",
            next=describe_resumption(code),
        )

    def _look_up(self, key: str) -> Any:
        if key in self._prefetched:
            return self._prefetched[key]
        if self._cache is None:
            return _MISSING
        with self._lock:
            return self._cache.get(key, _MISSING)

    def _store(self, key: str, value: Any) -> Any:
        """Store a score; return it as a resumed run will read it."""
        if self._cache is None:
            return value
        with self._lock:
            self._cache.put(key, value)
            return self._cache.get(key)

    def _calibrate(self, state: ScoringState, digest: str) -> None:
        """Score the calibration records of a filter before it judges any record."""
        records = state.calibration_records()
        if records:
            state.calibrate(self._score(state, digest, records))
            self._calibrated += [_cache_key(digest, record) for record in records]
            self._prefetched.clear()


@dataclass(frozen=True, eq=False)
class _FilterTask:
    """Worker task: apply the filters whose verdict depends on the record alone."""

    filters: tuple[Filter, ...]
    context: FilterContext
    concurrency: int = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the models: filters that need one are not part of the task."""
        context = self.context
        held_out = list(context.held_out)
        return _restore_filter_task, (
            self.filters,
            context.passages,
            context.frequency,
            held_out,
            context.seed,
        )

    def open(self) -> Callable[[Sequence[Record]], list[list[tuple[int, str, FilterResult]]]]:
        states = [
            (number, settings.start(self.context))
            for number, settings in enumerate(self.filters)
            if not settings.is_stateful and not isinstance(settings, ModelScoredFilter)
        ]

        def judge(records: Sequence[Record]) -> list[list[tuple[int, str, FilterResult]]]:
            return [list(_iter_results(record, states)) for record in records]

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
    record: Record, states: Sequence[tuple[int, FilterState]]
) -> Iterator[tuple[int, str, FilterResult]]:
    """Yield each verdict with its filter's index and its record's id, up to the first rejection."""
    for number, state in states:
        verdict = state.judge(record)
        yield number, record.id, verdict
        if not verdict.keep:
            return
        record = verdict.changed or record


def _cache_key(digest: str, record: Record) -> str:
    return f"{digest}/{record.id}"
