"""Generation scheduler: concurrent requests to the teacher, results returned in order.

Slightly more units than concurrent requests are in progress, so that no connection is idle while an
answer is processed. At most twice as many are started ahead of the next result, and once fewer
records than that are wanted, only as many as are in progress at once: memory does not grow with
their number, and an interruption or a reached limit wastes no more than those.

One thread advances whichever unit has its answers. A slow step (such as running a candidate's code)
must not block the others: while one does, another thread advances them. Requests to a model without
``submit`` block one thread each.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from stillroom.errors import BackendError
from stillroom.models import AsyncModel, ConcurrentModel
from stillroom.records import Completion
from stillroom.synth.interfaces import GeneratorState
from stillroom.synth.pipeline.steps import UNLIMITED
from stillroom.synth.prompting.requests import (
    REFUSED,
    UNANSWERED,
    ModelRequest,
    RequestBatch,
    describe_resumption,
    to_failure,
)
from stillroom.synth.prompting.stepwise import CoroutineBatch
from stillroom.synth.types import CacheProtocol, GenerationFailure, GenerationResult, WorkItem

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["CoroutineScheduler", "DraftCache", "generate_units", "is_unanswered", "stream_units"]

_AHEAD = 2
_UNITS_PER_SPARE = 4
"""One extra unit for so many: while some process an answer, others have a request ready."""

_POLL_S = 0.2
_GATHER_S = 0.005
"""Time to let other units finish along with the one waited for: waking up for each is more
expensive than the units themselves, and takes the interpreter from the requesting threads.
"""

_MAX_REFUSALS = 20
_MAX_UNANSWERED = 10


def stream_units(
    seeds: Iterable[WorkItem],
    generator: GeneratorState,
    model: TextModel,
    store: DraftCache,
    *,
    workers: int,
    pause: Callable[[], None] = lambda: None,
    wanted: Callable[[], int] = lambda: UNLIMITED,
) -> Iterator[GenerationResult]:
    """Yield the draft of every unit in order; finished ones come from the cache.

    Args:
        seeds: The units, in order; read as needed.
        generator: State of the generator; called from several threads, one unit at a time.
        model: A teacher that supports requests from several threads.
        store: Cache of finished units, in any order.
        workers: Number of concurrent requests.
        pause: Callback on the caller's thread several times per second, where it is safe to stop.
        wanted: Number of records that the caller still takes, of the drafts after the last one.

    Raises:
        BackendError: If the teacher fails, or refuses many units from the start.
    """
    remaining = iter(seeds)
    futures: deque[Future[GenerationResult | None]] = deque()
    units = workers + -(-workers // _UNITS_PER_SPARE)
    scheduler = CoroutineScheduler(generator, model, store, units=units)

    def look() -> None:
        scheduler.relieve()
        pause()

    try:
        while True:
            # which of the units started are asked before the caller stops depends on the clock, so
            # the bound has to be on those started
            ahead = max(units, min(_AHEAD * units, wanted()))
            missing = max(ahead - len(futures), 0)
            futures.extend(scheduler.add(seed) for seed in islice(remaining, missing))
            if not futures:
                return
            result = _wait_for_unit(futures.popleft(), look)
            pause()
            if result is not None:
                store.watch(result)
                yield result
    finally:
        scheduler.close()


def is_unanswered(draft: GenerationResult) -> bool:
    """Return whether a unit is incomplete because the server did not answer all requests."""
    return bool(_find_unanswered(draft))


def _find_unanswered(draft: GenerationResult) -> list[GenerationFailure]:
    return [failure for failure in draft.failures if failure.reason in UNANSWERED]


def _is_lost(draft: GenerationResult) -> bool:
    """Return whether half of a unit's requests lack answers; without a record, half its failures.

    One missing answer of many is none of a server that is down, even if no other was good.
    """
    whole = draft.asked if draft.records else min(draft.asked, len(draft.failures))
    num_unanswered = len(_find_unanswered(draft))
    return num_unanswered > 0 and 2 * num_unanswered >= whole


def _wait_for_unit(
    unit: Future[GenerationResult | None], pause: Callable[[], None]
) -> GenerationResult | None:
    """Wait for a unit's draft, calling ``pause`` several times per second."""
    if not unit.done():
        time.sleep(_GATHER_S)
    while True:
        try:
            return unit.result(_POLL_S)
        except TimeoutError:
            if unit.done():  # finished just after the timeout, or raised a TimeoutError itself
                return unit.result()
            pause()


class DraftCache:
    """Cache of finished drafts, with the counts of refused and unanswered units."""

    def __init__(self, cache: CacheProtocol) -> None:
        self.cache = cache
        self._lock = threading.Lock()
        self._refused = self._records = self._num_unanswered = 0
        self._cached: set[str] = set()

    def known(self, seed: WorkItem) -> GenerationResult | None:
        """Return the unit's draft from the cache."""
        with self._lock:
            value = self.cache.get(seed.key)
            if value is not None:
                self._cached.add(seed.key)
        return GenerationResult.from_json(value) if value is not None else None  # type: ignore[arg-type]

    def keep(self, draft: GenerationResult) -> GenerationResult:
        """Store a draft unless it is unanswered; return it as a resumed run will read it."""
        if is_unanswered(draft):
            return draft
        with self._lock:
            self.cache.put(draft.key, draft.to_json())
            stored = self.cache.get(draft.key)
        return GenerationResult.from_json(stored)  # type: ignore[arg-type]  # put above

    def watch(self, draft: GenerationResult) -> None:
        """Count refusals and missing answers, to stop early.

        Raises:
            BackendError: If the server refused many units from the start without a record, or the
                last ten that were not in the cache are lost for want of answers.
        """
        if draft.key in self._cached:
            self._cached.remove(draft.key)  # says nothing of the server as it is now
        else:
            self._num_unanswered = self._num_unanswered + 1 if _is_lost(draft) else 0
        if self._num_unanswered >= _MAX_UNANSWERED:
            failure = _find_unanswered(draft)[-1]
            raise BackendError(
                f"{self._num_unanswered} consecutive units lack answers: {failure.text:.300}",
                code=UNANSWERED[failure.reason],
                expected="a server that answers",
                next=describe_resumption(UNANSWERED[failure.reason]),
            )
        refusals = [failure.text for failure in draft.failures if failure.reason == REFUSED]
        self._records += len(draft.records)
        self._refused += bool(refusals)
        if not self._records and self._refused >= _MAX_REFUSALS:
            raise BackendError(
                f"the first {self._refused} units were all refused: {refusals[-1]:.300}"
                if refusals
                else f"{self._refused} of the first units were refused",
                code="synth.refused",
                expected="a server that accepts the requests of the recipe",
                next="change the recipe according to the server's message",
            )


_SLOW_STEP_S = 0.05


@dataclass(slots=True, eq=False)
class _ScheduledUnit:
    seed: WorkItem
    draft: Future[GenerationResult | None] = field(default_factory=Future)
    work: CoroutineBatch | None = None
    answers: list[Completion | GenerationFailure | BaseException | None] = field(
        default_factory=list
    )
    num_pending: int = 0


class CoroutineScheduler:
    """Scheduler of a bounded number of concurrent units."""

    def __init__(
        self, generator: GeneratorState, model: TextModel, store: DraftCache, *, units: int
    ) -> None:
        self._model, self._store, self._max_active = model, store, units
        self._generator = generator
        self._async_models: dict[int, tuple[TextModel, AsyncModel | None]] = {}
        self._ready: queue.SimpleQueue[_ScheduledUnit | None] = queue.SimpleQueue()
        self._waiting: deque[_ScheduledUnit] = deque()
        self._lock = threading.Lock()
        self._num_active = 0
        self._idle = threading.Event()
        self._idle.set()
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._last_start = 0.0
        self._executor = ThreadPoolExecutor(units, thread_name_prefix="stillroom-synth-ask")

    def add(self, seed: WorkItem) -> Future[GenerationResult | None]:
        """Start a unit once there is room; its draft is None if the scheduler closed first."""
        unit = _ScheduledUnit(seed)
        with self._lock:
            if self._num_active >= self._max_active:
                self._waiting.append(unit)
                return unit.draft
            self._num_active += 1
            self._idle.clear()
        self._push(unit)
        return unit.draft

    def close(self) -> None:
        """Start no more units, and let those in progress finish: they are paid for."""
        with self._lock:
            self._stopped = True
            while self._waiting:
                self._waiting.popleft().draft.set_result(None)
        self._idle.wait()
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()
        self._executor.shutdown()

    def relieve(self) -> None:
        """Start another thread if all are busy with slow steps while units could advance."""
        with self._lock:
            is_late = time.monotonic() - self._last_start > _SLOW_STEP_S and not self._ready.empty()
            if self._busy < len(self._threads) or len(self._threads) >= self._max_active:
                return
            if self._threads and not is_late:
                return
            name = f"stillroom-synth-{len(self._threads)}"
            thread = threading.Thread(target=self._work, daemon=True, name=name)
            thread.start()  # under the lock: ``close`` joins only threads that run
            self._threads.append(thread)

    def _push(self, unit: _ScheduledUnit) -> None:
        self._ready.put(unit)
        self.relieve()

    def _work(self) -> None:
        while (unit := self._ready.get()) is not None:
            with self._lock:
                self._busy += 1
                self._last_start = time.monotonic()
            try:
                self._advance(unit)
            except BaseException as error:  # noqa: BLE001  # raised again by who wants the draft
                self._finish(unit, error)
            with self._lock:
                self._busy -= 1

    def _advance(self, unit: _ScheduledUnit) -> None:
        if unit.work is None:
            stored = self._store.known(unit.seed)
            if stored is not None or self._stopped:
                self._finish(unit, stored)
                return
            unit.work = self._generator.open([unit.seed], self._model)
        else:
            unit.work.answer([_read_answer(value) for value in unit.answers])
        work = unit.work
        while work.requests is not None and not work.requests:
            work.answer([])
        if work.requests is not None:
            self._ask(unit, work.batch, work.requests)
            return
        (draft,) = work.batch.drafts()
        self._finish(unit, self._store.keep(draft))

    def _ask(
        self, unit: _ScheduledUnit, batch: RequestBatch, requests: Sequence[ModelRequest]
    ) -> None:
        unit.answers, unit.num_pending = [None] * len(requests), len(requests)
        blocking: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            model = request.model or self._model
            async_model = self._get_async_model(model)
            if async_model is not None:
                async_model.submit(
                    request.prompt, request.sampling, partial(self._arrive, unit, index)
                )
            else:
                blocking.setdefault(id(model), []).append(index)
        for indices in blocking.values():
            self._executor.submit(self._wait_for, unit, batch, requests, indices)

    def _get_async_model(self, model: TextModel) -> AsyncModel | None:
        """Return the model if it supports asynchronous requests; looked up once."""
        cached = self._async_models.get(id(model))
        if cached is None:
            cached = model, model if isinstance(model, AsyncModel) else None
            self._async_models[id(model)] = cached  # keeps the model alive, and so its id unique
        return cached[1]

    def _wait_for(
        self,
        unit: _ScheduledUnit,
        batch: RequestBatch,
        requests: Sequence[ModelRequest],
        indices: Sequence[int],
    ) -> None:
        """Send several of a unit's requests to one model together."""
        selected = [requests[index] for index in indices]
        values: Sequence[Completion | GenerationFailure | BaseException]
        try:
            values = batch.complete(selected, selected[0].model or self._model)
        except BaseException as error:  # noqa: BLE001  # raised again where the unit advances
            values = [error] * len(selected)
        for index, value in zip(indices, values, strict=True):
            self._arrive(unit, index, value)

    def _arrive(
        self,
        unit: _ScheduledUnit,
        index: int,
        value: Completion | GenerationFailure | BaseException,
    ) -> None:
        """Store one answer; called on the thread that produced it."""
        with self._lock:
            unit.answers[index] = value
            unit.num_pending -= 1
            is_answered = not unit.num_pending
        if is_answered:
            self._push(unit)

    def _finish(
        self, unit: _ScheduledUnit, outcome: GenerationResult | BaseException | None
    ) -> None:
        with self._lock:
            next_unit = self._waiting.popleft() if self._waiting else None
            self._num_active -= next_unit is None
            if not self._num_active:
                self._idle.set()
        if isinstance(outcome, BaseException):
            unit.draft.set_exception(outcome)
        else:
            unit.draft.set_result(outcome)
        if next_unit is not None:
            self._push(next_unit)


def _read_answer(
    value: Completion | GenerationFailure | BaseException | None,
) -> Completion | GenerationFailure:
    """Return the result of a request.

    Raises:
        BackendError: If the error is the teacher's and not the request's.
    """
    if isinstance(value, BackendError):
        return to_failure(value)
    if isinstance(value, BaseException):
        raise value
    if value is None:
        raise AssertionError("unreachable: a unit advances when all answers have arrived")
    return value


def generate_units(
    seeds: Iterable[WorkItem],
    generator: GeneratorState,
    model: TextModel,
    cache: CacheProtocol,
    *,
    batch_size: int,
    pause: Callable[[], None] = lambda: None,
    wanted: Callable[[], int] = lambda: UNLIMITED,
) -> Iterator[GenerationResult]:
    """Yield the draft of every unit in order; finished ones come from the cache.

    A teacher that supports concurrent requests is used unit by unit, on as many threads, without
    waiting for the slowest of a batch; others are used in batches. For a generator with memory, a
    round of units is generated before the first of it is finalized.

    Args:
        seeds: The units, in order.
        generator: State of the generator.
        model: The teacher.
        cache: Cache of finished units, as they were generated: before they are finalized.
        batch_size: Number of units per batch, for a teacher that works in batches.
        pause: Callback where it is safe to stop.
        wanted: Number of records that the caller still takes; batches are not cut for it.

    Raises:
        BackendError: If the teacher fails, or refuses many units from the start.
    """
    store = DraftCache(cache)  # one for all rounds, which are smaller than the counts that stop

    def draft(units: Iterable[WorkItem]) -> Iterator[GenerationResult]:
        if isinstance(model, ConcurrentModel) and model.concurrency > 1:
            return stream_units(
                units,
                generator,
                model,
                store,
                workers=model.concurrency,
                pause=pause,
                wanted=wanted,
            )
        return _generate_groups(units, generator, model, store, batch_size, pause)

    if not generator.round_size:
        yield from map(generator.finalize, draft(seeds))
        return
    remaining = iter(seeds)
    while units := list(islice(remaining, generator.round_size)):
        yield from map(generator.finalize, list(draft(units)))


def _generate_groups(
    seeds: Iterable[WorkItem],
    generator: GeneratorState,
    model: TextModel,
    store: DraftCache,
    batch_size: int,
    pause: Callable[[], None],
) -> Iterator[GenerationResult]:
    remaining = iter(seeds)
    while group := list(islice(remaining, batch_size)):
        pause()
        drafts = {seed.key: draft for seed in group if (draft := store.known(seed)) is not None}
        if missing := [seed for seed in group if seed.key not in drafts]:
            new = map(store.keep, generator.generate(missing, model))
            drafts |= {draft.key: draft for draft in new}
        for seed in group:
            store.watch(drafts[seed.key])
            yield drafts[seed.key]
