"""Generation scheduler: concurrent work items whose results are returned in order.

There are some more units at work than requests at once, so that one whose answer is read leaves no
connection idle. At most twice as many are begun beyond the one that is waited for: memory does not
grow with their number, and a kill or a reached target wastes no more than those.

One thread goes on with whichever unit has its answers. A step that takes long (a candidate's code
that runs) must not hold up the others: as long as one does, another thread goes on with them. What
cannot be asked without a thread that waits has one for every unit that asks it: a model without
``submit``, and a writer that is no ``SteppedWriter``.
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
from typing import TYPE_CHECKING, Protocol

from stillroom.errors import BackendError
from stillroom.models import AsyncModel, ConcurrentModel
from stillroom.records import Completion
from stillroom.synth.interfaces import GeneratorState
from stillroom.synth.prompting.coroutines import CoroutineBatch, StepwiseState
from stillroom.synth.prompting.requests import (
    NO_ANSWER,
    REFUSED,
    ModelRequest,
    RequestBatch,
    to_failure,
)
from stillroom.synth.types import GenerationFailure, GenerationResult, WorkItem

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = [
    "CoroutineScheduler",
    "DraftCache",
    "DraftStore",
    "generate_units",
    "is_unanswered",
    "stream_units",
]


_AHEAD = 2
_UNITS_PER_SPARE = 4
"""One unit more for so many: while some read an answer, others have a request ready."""

_POLL_S = 0.2
_GATHER_S = 0.005
"""So long others may finish beside a unit that is waited for: being woken for each costs more than
taking it, and takes the interpreter from those who ask."""

_MAX_REFUSALS = 20
_MAX_UNANSWERED = 10


class DraftCache(Protocol):
    """Where finished units are kept: a journal, or a dict that forgets."""

    def get(self, key: str, default: object = None) -> object:
        """Return a unit's value, or the default."""

    def put(self, key: str, value: object) -> None:
        """Keep a unit's value."""


def stream_units(
    seeds: Iterable[WorkItem],
    writer: GeneratorState,
    model: TextModel,
    shelf: DraftCache,
    *,
    workers: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[GenerationResult]:
    """Yield the draft of every unit in order; finished ones come from the shelf.

    Args:
        seeds: The units, in order; taken as they are needed.
        writer: How the teacher is asked; called from several threads, a unit at a time.
        model: A teacher that may be asked from several threads.
        shelf: Where finished units are kept, whatever their order.
        workers: How many units are asked about at once.
        pause: Called on the caller's thread several times a second, and where it is safe to stop.

    Raises:
        BackendError: If the teacher fails, or refuses the first many units one after another.
    """
    stream = _UnitStream(shelf)
    remaining = iter(seeds)
    begun: deque[Future[GenerationResult | None]] = deque()
    units = workers + -(-workers // _UNITS_PER_SPARE)
    crew = CoroutineScheduler(writer, model, stream, units=units)

    def look() -> None:
        crew.relieve()
        pause()

    try:
        while True:
            begun.extend(crew.add(seed) for seed in islice(remaining, _AHEAD * units - len(begun)))
            if not begun:
                return
            found = _wait_for_unit(begun.popleft(), look)
            pause()
            if found is not None:
                stream.watch(found)
                yield found
    finally:
        crew.close()


def is_unanswered(draft: GenerationResult) -> bool:
    """Return whether a unit is not done, because the server did not answer all of it."""
    return any(failure.reason == NO_ANSWER for failure in draft.failures)


def _wait_for_unit(
    unit: Future[GenerationResult | None], pause: Callable[[], None]
) -> GenerationResult | None:
    """Return a unit's draft when it is there, pausing several times a second until then."""
    if not unit.done():
        time.sleep(_GATHER_S)
    while True:
        try:
            return unit.result(_POLL_S)
        except TimeoutError:
            if unit.done():  # just after the wait for it gave up, or by an error of its own
                return unit.result()
            pause()


class _UnitStream:
    """What the units share."""

    def __init__(self, shelf: DraftCache) -> None:
        self.shelf = shelf
        self._lock = threading.Lock()
        self._refused = self._records = self._lost = 0

    def known(self, seed: WorkItem) -> GenerationResult | None:
        """Return the unit's draft from the shelf."""
        with self._lock:
            known = self.shelf.get(seed.key)
        return GenerationResult.from_json(known) if known is not None else None  # type: ignore[arg-type]

    def keep(self, made: GenerationResult) -> GenerationResult:
        """Put a draft on the shelf, unless it is lost; return it as a resume will read it."""
        if is_unanswered(made):
            return made
        with self._lock:
            self.shelf.put(made.key, made.to_json())
            kept = self.shelf.get(made.key)
        return GenerationResult.from_json(kept)  # type: ignore[arg-type]  # put above

    def watch(self, found: GenerationResult) -> None:
        """Count refusals; a server that takes nothing is not asked for every unit.

        Raises:
            BackendError: If it refused the first many units and gave no record, or has answered
                none of the last ten.
        """
        lost = [failure.text for failure in found.failures if failure.reason == NO_ANSWER]
        self._lost = self._lost + 1 if lost else 0
        if self._lost >= _MAX_UNANSWERED:
            raise BackendError(
                f"{self._lost} units in a row had no answer: {lost[-1]:.300}",
                code="backend.unavailable",
                expected="a server that answers",
                next="run the same command again with --resume when it does",
            )
        said = [failure.text for failure in found.failures if failure.reason == REFUSED]
        self._records += len(found.records)
        self._refused += bool(said)
        if not self._records and self._refused >= _MAX_REFUSALS:
            raise BackendError(
                f"the first {self._refused} units were all refused: {said[-1]:.300}"
                if said
                else f"{self._refused} of the first units were refused",
                code="synth.refused",
                expected="a server that takes what the recipe asks",
                next="change the recipe as the server says; it was not asked further",
            )


_SLOW_STEP_S = 0.05


class DraftStore(Protocol):
    """Where drafts of finished units lie."""

    def known(self, seed: WorkItem) -> GenerationResult | None:
        """Return the draft of a unit that was finished before."""

    def keep(self, made: GenerationResult) -> GenerationResult:
        """Keep a draft, and return it as a resume would read it."""


@dataclass(slots=True, eq=False)
class _ScheduledUnit:
    seed: WorkItem
    draft: Future[GenerationResult | None] = field(default_factory=Future)
    work: CoroutineBatch | None = None
    given: list[Completion | GenerationFailure | BaseException | None] = field(default_factory=list)
    left: int = 0


class CoroutineScheduler:
    """A bounded number of units at work."""

    def __init__(
        self, writer: GeneratorState, model: TextModel, shelf: DraftStore, *, units: int
    ) -> None:
        """Start with none.

        Args:
            writer: Whose steps are taken.
            model: The teacher, which may be asked from several threads.
            shelf: Where finished units are looked up and kept.
            units: How many are at work at once.
        """
        self._model, self._shelf, self._most = model, shelf, units
        self._writer = writer
        self._stepped = writer if isinstance(writer, StepwiseState) else None
        self._known: dict[int, tuple[TextModel, AsyncModel | None]] = {}
        self._ready: queue.SimpleQueue[_ScheduledUnit | None] = queue.SimpleQueue()
        self._waiting: deque[_ScheduledUnit] = deque()
        self._lock = threading.Lock()
        self._at_work = 0
        self._idle = threading.Event()
        self._idle.set()
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._taken = 0.0
        self._others = ThreadPoolExecutor(units, thread_name_prefix="stillroom-synth-ask")

    def add(self, seed: WorkItem) -> Future[GenerationResult | None]:
        """Begin a unit as soon as there is room; its draft is None if it was stopped before."""
        unit = _ScheduledUnit(seed)
        with self._lock:
            if self._at_work >= self._most:
                self._waiting.append(unit)
                return unit.draft
            self._at_work += 1
            self._idle.clear()
        self._push(unit)
        return unit.draft

    def close(self) -> None:
        """Begin no more units, and let those at work come to their end: they are paid for."""
        with self._lock:
            self._stopped = True
            while self._waiting:
                self._waiting.popleft().draft.set_result(None)
        self._idle.wait()
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()
        self._others.shutdown()

    def relieve(self) -> None:
        """Start one more thread where all are busy with long steps, and units could go on."""
        with self._lock:
            is_late = time.monotonic() - self._taken > _SLOW_STEP_S and not self._ready.empty()
            if self._busy < len(self._threads) or len(self._threads) >= self._most:
                return
            if self._threads and not is_late:
                return
            name = f"stillroom-synth-{len(self._threads)}"
            thread = threading.Thread(target=self._work, daemon=True, name=name)
            self._threads.append(thread)
        thread.start()

    def _push(self, unit: _ScheduledUnit) -> None:
        self._ready.put(unit)
        self.relieve()

    def _work(self) -> None:
        while (unit := self._ready.get()) is not None:
            with self._lock:
                self._busy += 1
                self._taken = time.monotonic()
            try:
                self._go_on(unit)
            except BaseException as error:  # noqa: BLE001  # raised again by who wants the draft
                self._finish(unit, error)
            with self._lock:
                self._busy -= 1

    def _go_on(self, unit: _ScheduledUnit) -> None:
        if unit.work is None:
            known = self._shelf.known(unit.seed)
            if known is not None or self._stopped:
                self._finish(unit, known)
                return
            if self._stepped is None:
                self._others.submit(self._write_whole, unit)
                return
            unit.work = self._stepped.open([unit.seed], self._model)
        else:
            unit.work.answer([_read_answer(one) for one in unit.given])
        work = unit.work
        while work.asks is not None and not work.asks:
            work.answer([])
        if work.asks is not None:
            self._ask(unit, work.asking, work.asks)
            return
        (made,) = work.asking.drafts()
        self._finish(unit, self._shelf.keep(made))

    def _write_whole(self, unit: _ScheduledUnit) -> None:
        """Write a unit on a thread that waits for its answers."""
        outcome: GenerationResult | BaseException
        try:
            (made,) = self._writer.generate([unit.seed], self._model)
            outcome = self._shelf.keep(made)
        except BaseException as error:  # noqa: BLE001  # raised again by who wants the draft
            outcome = error
        self._finish(unit, outcome)

    def _ask(
        self, unit: _ScheduledUnit, asking: RequestBatch, asks: Sequence[ModelRequest]
    ) -> None:
        unit.given, unit.left = [None] * len(asks), len(asks)
        kept_waiting: dict[int, list[int]] = {}
        for at, ask in enumerate(asks):
            model = ask.model or self._model
            submitting = self._submitting_of(model)
            if submitting is not None:
                submitting.submit(ask.prompt, ask.sampling, partial(self._arrive, unit, at))
            else:
                kept_waiting.setdefault(id(model), []).append(at)
        for places in kept_waiting.values():
            self._others.submit(self._wait_for, unit, asking, asks, places)

    def _submitting_of(self, model: TextModel) -> AsyncModel | None:
        """Return the model, where it can be asked without a thread that waits; looked up once."""
        known = self._known.get(id(model))
        if known is None:
            known = model, model if isinstance(model, AsyncModel) else None
            self._known[id(model)] = known  # which keeps the model, and so its id its own
        return known[1]

    def _wait_for(
        self,
        unit: _ScheduledUnit,
        asking: RequestBatch,
        asks: Sequence[ModelRequest],
        places: Sequence[int],
    ) -> None:
        """Ask one model for several of a unit's asks together."""
        mine = [asks[at] for at in places]
        found: Sequence[Completion | GenerationFailure | BaseException]
        try:
            found = asking.complete(mine, mine[0].model or self._model)
        except BaseException as error:  # noqa: BLE001  # raised again where the unit goes on
            found = [error] * len(mine)
        for at, value in zip(places, found, strict=True):
            self._arrive(unit, at, value)

    def _arrive(
        self, unit: _ScheduledUnit, at: int, value: Completion | GenerationFailure | BaseException
    ) -> None:
        """Take one answer, on the thread of whoever gives it."""
        with self._lock:
            unit.given[at] = value
            unit.left -= 1
            is_answered = not unit.left
        if is_answered:
            self._push(unit)

    def _finish(
        self, unit: _ScheduledUnit, outcome: GenerationResult | BaseException | None
    ) -> None:
        with self._lock:
            following = self._waiting.popleft() if self._waiting else None
            self._at_work -= following is None
            if not self._at_work:
                self._idle.set()
        if isinstance(outcome, BaseException):
            unit.draft.set_exception(outcome)
        else:
            unit.draft.set_result(outcome)
        if following is not None:
            self._push(following)


def _read_answer(
    value: Completion | GenerationFailure | BaseException | None,
) -> Completion | GenerationFailure:
    """Return what an ask gave.

    Raises:
        BackendError: If that is the teacher's fault and not the ask's.
    """
    if isinstance(value, BackendError):
        return to_failure(value)
    if isinstance(value, BaseException):
        raise value
    if value is None:
        raise AssertionError("unreachable: a unit goes on when all has arrived")
    return value


def generate_units(
    seeds: Iterable[WorkItem],
    writer: GeneratorState,
    model: TextModel,
    shelf: DraftCache,
    *,
    batch_size: int,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[GenerationResult]:
    """Yield the draft of every unit in order; finished ones come from the shelf.

    A teacher that takes several requests at once is asked unit by unit, on as many threads, with no
    waiting for the slowest of a group; others are asked in groups. Where the writer remembers, a
    round of units is drafted before the first of it is settled.

    Args:
        seeds: The units, in order.
        writer: How the teacher is asked.
        model: The teacher.
        shelf: Where finished units are kept, as they were drafted: before they are settled.
        batch_size: How many units are asked about at once, where the teacher works in groups.
        pause: Called where it is safe to stop.

    Raises:
        BackendError: If the teacher fails, or refuses the first many units one after another.
    """

    def draft(units: Iterable[WorkItem]) -> Iterator[GenerationResult]:
        if isinstance(model, ConcurrentModel) and model.concurrency > 1:
            return stream_units(units, writer, model, shelf, workers=model.concurrency, pause=pause)
        return _generate_groups(units, writer, model, shelf, batch_size, pause)

    if not writer.round_size:
        yield from map(writer.settle, draft(seeds))
        return
    remaining = iter(seeds)
    while units := list(islice(remaining, writer.round_size)):
        yield from map(writer.settle, list(draft(units)))


def _generate_groups(
    seeds: Iterable[WorkItem],
    writer: GeneratorState,
    model: TextModel,
    shelf: DraftCache,
    batch_size: int,
    pause: Callable[[], None],
) -> Iterator[GenerationResult]:
    remaining = iter(seeds)
    while group := list(islice(remaining, batch_size)):
        pause()
        missing = [seed for seed in group if shelf.get(seed.key) is None]
        lost: dict[str, GenerationResult] = {}
        for draft in writer.generate(missing, model) if missing else ():
            if is_unanswered(draft):
                lost[draft.key] = draft
            else:
                shelf.put(draft.key, draft.to_json())
        for seed in group:
            if seed.key in lost:
                yield lost[seed.key]
            else:
                yield GenerationResult.from_json(shelf.get(seed.key))  # type: ignore[arg-type]  # put above
