"""Batching: streams of several threads written side by side, each as if it were alone.

One thread writes while there is anything to write: a token for every open batch in turn. What comes
in meanwhile stands in line, and each round opens one batch of it, of prompts that share a bucket. A
batch has the shapes that each of its streams would have alone (see ``backends.transformers``), so
that no stream depends on its company; that is why none joins a batch that has begun.

Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models", OSDI 2022 (scheduling by iteration). Differs: batches are interleaved and never mixed, so
that rows of batches that run out stay empty.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillroom.models.decoding import Drawing

__all__ = ["Batching"]

_OVER = object()


@dataclass(eq=False)
class _Seat:
    """A stream in line or in a batch: what is told next of it, and whether that is all."""

    drawing: Drawing
    bucket: int
    told: int = 0
    """Characters that are in ``pieces`` or have been."""
    pieces: deque[str] = field(default_factory=deque)
    is_done: bool = False
    error: BaseException | None = None


@dataclass(eq=False)
class _Batch:
    seats: list[_Seat]
    steps: Iterator[None] = field(default_factory=lambda: iter(()))


class Batching:
    """Writes the streams of all threads that ask, on a thread of its own."""

    def __init__(
        self,
        draw: Callable[[Sequence[Drawing]], Iterator[None]],
        *,
        rows: int,
        batches: int,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Write by ``draw``, which draws one token for each of its drawings between yields.

        Args:
            draw: Ends when all of them have ended.
            rows: Most streams of a batch.
            batches: Most batches at a time; more streams wait.
            begin: Called first on each thread that writes, for settings that are a thread's own.
        """
        self._draw, self._rows, self._batches, self._begin = draw, rows, batches, begin
        self._state = threading.Condition()
        self._is_working = False
        self._line: deque[_Seat] = deque()
        self._open: list[_Batch] = []

    def stream(self, drawing: Drawing, bucket: int) -> Generator[str]:
        """Yield a drawing's text as it settles, token by token; closing it ends the drawing.

        Args:
            drawing: Not begun.
            bucket: Those of one bucket share batches.

        Raises:
            Exception: What the engine raised over its batch, or over it alone.
        """
        seat = _Seat(drawing, bucket)
        try:
            self._join(seat)
            while True:
                with self._state:
                    self._state.wait_for(lambda: seat.pieces or seat.is_done)
                    piece = seat.pieces.popleft() if seat.pieces else None
                if piece is None:
                    break
                yield piece
            if seat.error is not None:
                raise seat.error
        finally:
            self._leave(seat)

    def _join(self, seat: _Seat) -> None:
        """Stand in line, and see to it that somebody works."""
        with self._state:
            self._line.append(seat)
            if not self._is_working:
                # No daemon: an interpreter that ends waits for a token, and ends no engine midway.
                threading.Thread(target=self._work, name="stillroom-batching").start()
                self._is_working = True

    def _work(self) -> None:
        self._begin()
        while batches := self._next_round():
            for batch in batches:
                error: BaseException | None = None
                try:
                    is_over = next(batch.steps, _OVER) is _OVER
                except BaseException as raised:  # noqa: BLE001  # raised in every stream of it
                    is_over, error = True, raised
                with self._state:
                    for seat in batch.seats:
                        self._settle(seat, is_over, error)
                    self._drop_ended()
                    self._state.notify_all()

    def _next_round(self) -> list[_Batch]:
        """Open one more batch of those who wait; return all that are open, nothing at the end."""
        with self._state:
            self._open_batch()
            self._is_working = bool(self._open)
            return list(self._open)

    def _open_batch(self) -> None:
        """Take from the line the first and those behind it of its bucket."""
        if not self._line or len(self._open) >= self._batches:
            return
        bucket = self._line[0].bucket
        seats = [seat for seat in self._line if seat.bucket == bucket][: self._rows]
        for seat in seats:
            self._line.remove(seat)
        self._open.append(_Batch(seats, self._draw([seat.drawing for seat in seats])))

    def _settle(self, seat: _Seat, is_over: bool, error: BaseException | None) -> None:
        if seat.is_done:
            return
        try:
            text = "" if error else seat.drawing.settled()
        except BaseException as raised:  # noqa: BLE001  # raised in its stream; the others go on
            text, error = "", raised
            seat.drawing.reason = seat.drawing.reason or "failed"
        if len(text) > seat.told:
            seat.pieces.append(text[seat.told :])
            seat.told = len(text)
        seat.error = error or seat.drawing.error
        seat.is_done = is_over or bool(error or seat.drawing.reason)

    def _leave(self, seat: _Seat) -> None:
        """Forget a seat; its row is empty from the next token on."""
        with self._state:
            if seat in self._line:
                self._line.remove(seat)
            if not seat.is_done:
                seat.is_done = True
                seat.drawing.reason = seat.drawing.reason or "cancelled"
                self._drop_ended()

    def _drop_ended(self) -> None:
        """Forget batches that nobody listens to."""
        self._open = [one for one in self._open if not all(seat.is_done for seat in one.seats)]
