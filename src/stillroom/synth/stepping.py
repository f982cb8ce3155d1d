"""Units taken step by step, side by side.

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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from stillroom.errors import BackendError
from stillroom.models import SubmittingModel
from stillroom.records import Completion
from stillroom.synth.asking import Ask, Asking, failure_of
from stillroom.synth.method import Draft, Failure, Seed, Writer
from stillroom.synth.steps import Drafting, SteppedWriter

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["Keeping", "Stepping"]

_LONG_S = 0.05


class Keeping(Protocol):
    """Where drafts of finished units lie."""

    def known(self, seed: Seed) -> Draft | None:
        """Return the draft of a unit that was finished before."""

    def keep(self, made: Draft) -> Draft:
        """Keep a draft, and return it as a resume would read it."""


@dataclass(slots=True, eq=False)
class _Unit:
    seed: Seed
    draft: Future[Draft | None] = field(default_factory=Future)
    work: Drafting | None = None
    given: list[Completion | Failure | BaseException | None] = field(default_factory=list)
    left: int = 0


class Stepping:
    """A bounded number of units at work."""

    def __init__(self, writer: Writer, model: TextModel, shelf: Keeping, *, units: int) -> None:
        """Start with none.

        Args:
            writer: Whose steps are taken.
            model: The teacher, which may be asked from several threads.
            shelf: Where finished units are looked up and kept.
            units: How many are at work at once.
        """
        self._model, self._shelf, self._most = model, shelf, units
        self._writer = writer
        self._stepped = writer if isinstance(writer, SteppedWriter) else None
        self._known: dict[int, tuple[TextModel, SubmittingModel | None]] = {}
        self._ready: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._waiting: deque[_Unit] = deque()
        self._lock = threading.Lock()
        self._at_work = 0
        self._idle = threading.Event()
        self._idle.set()
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._taken = 0.0
        self._others = ThreadPoolExecutor(units, thread_name_prefix="stillroom-synth-ask")

    def add(self, seed: Seed) -> Future[Draft | None]:
        """Begin a unit as soon as there is room; its draft is None if it was stopped before."""
        unit = _Unit(seed)
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
            is_late = time.monotonic() - self._taken > _LONG_S and not self._ready.empty()
            if self._busy < len(self._threads) or len(self._threads) >= self._most:
                return
            if self._threads and not is_late:
                return
            name = f"stillroom-synth-{len(self._threads)}"
            thread = threading.Thread(target=self._work, daemon=True, name=name)
            self._threads.append(thread)
        thread.start()

    def _push(self, unit: _Unit) -> None:
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

    def _go_on(self, unit: _Unit) -> None:
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
            unit.work.answer([_read(one) for one in unit.given])
        work = unit.work
        while work.asks is not None and not work.asks:
            work.answer([])
        if work.asks is not None:
            self._ask(unit, work.asking, work.asks)
            return
        (made,) = work.asking.drafts()
        self._finish(unit, self._shelf.keep(made))

    def _write_whole(self, unit: _Unit) -> None:
        """Write a unit on a thread that waits for its answers."""
        outcome: Draft | BaseException
        try:
            (made,) = self._writer.generate([unit.seed], self._model)
            outcome = self._shelf.keep(made)
        except BaseException as error:  # noqa: BLE001  # raised again by who wants the draft
            outcome = error
        self._finish(unit, outcome)

    def _ask(self, unit: _Unit, asking: Asking, asks: Sequence[Ask]) -> None:
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

    def _submitting_of(self, model: TextModel) -> SubmittingModel | None:
        """Return the model, where it can be asked without a thread that waits; looked up once."""
        known = self._known.get(id(model))
        if known is None:
            known = model, model if isinstance(model, SubmittingModel) else None
            self._known[id(model)] = known  # which keeps the model, and so its id its own
        return known[1]

    def _wait_for(
        self, unit: _Unit, asking: Asking, asks: Sequence[Ask], places: Sequence[int]
    ) -> None:
        """Ask one model for several of a unit's asks together."""
        mine = [asks[at] for at in places]
        found: Sequence[Completion | Failure | BaseException]
        try:
            found = asking.complete(mine, mine[0].model or self._model)
        except BaseException as error:  # noqa: BLE001  # raised again where the unit goes on
            found = [error] * len(mine)
        for at, value in zip(places, found, strict=True):
            self._arrive(unit, at, value)

    def _arrive(self, unit: _Unit, at: int, value: Completion | Failure | BaseException) -> None:
        """Take one answer, on the thread of whoever gives it."""
        with self._lock:
            unit.given[at] = value
            unit.left -= 1
            is_answered = not unit.left
        if is_answered:
            self._push(unit)

    def _finish(self, unit: _Unit, outcome: Draft | BaseException | None) -> None:
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


def _read(value: Completion | Failure | BaseException | None) -> Completion | Failure:
    """Return what an ask gave.

    Raises:
        BackendError: If that is the teacher's fault and not the ask's.
    """
    if isinstance(value, BackendError):
        return failure_of(value)
    if isinstance(value, BaseException):
        raise value
    if value is None:
        raise AssertionError("unreachable: a unit goes on when all has arrived")
    return value
