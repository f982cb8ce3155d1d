"""Batch scheduler: concurrent streams on one decoding thread, one token a batch in turn.

Not continuous batching (in-flight batching): new requests are queued, each round opens one batch of
queued prompts of the same bucket, and a running batch accepts no new rows, so that no stream
depends on others. ``serve.middleware.concurrency`` limits how many requests come here
(backpressure).

Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
Models", OSDI 2022 (iteration-level scheduling). Differs: batches are interleaved, never merged, so
that rows of finished streams stay empty.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillroom.models.local.generation import DecodingState

__all__ = ["BatchScheduler"]

_EXHAUSTED = object()


@dataclass(eq=False)
class _QueuedStream:
    """A stream in the queue or in a batch, with its unread pieces."""

    state: DecodingState
    bucket: int
    emitted: int = 0
    """Characters added to ``pieces`` so far."""
    pieces: deque[str] = field(default_factory=deque)
    is_done: bool = False
    error: BaseException | None = None


@dataclass(eq=False)
class _Batch:
    entries: list[_QueuedStream]
    steps: Iterator[None] = field(default_factory=lambda: iter(()))


class BatchScheduler:
    """Decodes the streams of all calling threads on its own thread."""

    def __init__(
        self,
        decode: Callable[[Sequence[DecodingState]], Iterator[None]],
        *,
        rows: int,
        batches: int,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the decoding function, which decodes one token per row between yields.

        Args:
            decode: Generator over the steps of a batch; ends when all its rows have ended.
            rows: Maximum rows per batch (vLLM's ``max_num_seqs``): ``batch_size`` of the
                ``transformers`` backend.
            batches: Maximum concurrent batches; further streams wait.
            begin: Called first on each decoding thread, for thread-local settings.
        """
        self._decode, self._rows, self._batches, self._begin = decode, rows, batches, begin
        self._changed = threading.Condition()
        self._is_working = False
        self._waiting: deque[_QueuedStream] = deque()
        self._open: list[_Batch] = []

    def stream(self, state: DecodingState, bucket: int) -> Generator[str]:
        """Yield the final text of a completion, token by token; closing the generator ends it.

        Raises:
            Exception: Error of the engine in its batch or row.
        """
        entry = _QueuedStream(state, bucket)
        try:
            self._enqueue(entry)
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: entry.pieces or entry.is_done)
                    piece = entry.pieces.popleft() if entry.pieces else None
                if piece is None:
                    break
                yield piece
            if entry.error is not None:
                raise entry.error
        finally:
            self._remove(entry)

    def _enqueue(self, entry: _QueuedStream) -> None:
        """Queue a stream, and start the decoding thread if needed."""
        with self._changed:
            self._waiting.append(entry)
            if not self._is_working:
                # Not a daemon: at exit the interpreter waits for the current token.
                threading.Thread(target=self._run, name="stillroom-batching").start()
                self._is_working = True

    def _run(self) -> None:
        self._begin()
        while batches := self._next_round():
            for batch in batches:
                error: BaseException | None = None
                try:
                    is_over = next(batch.steps, _EXHAUSTED) is _EXHAUSTED
                except BaseException as raised:  # noqa: BLE001  # raised in its streams
                    is_over, error = True, raised
                with self._changed:
                    for entry in batch.entries:
                        self._emit(entry, is_over, error)
                    self._drop_ended()
                    self._changed.notify_all()

    def _next_round(self) -> list[_Batch]:
        """Open one more batch of queued streams; return the open batches, none at the end."""
        with self._changed:
            self._open_batch()
            self._is_working = bool(self._open)
            return list(self._open)

    def _open_batch(self) -> None:
        """Move the first queued stream and those of its bucket to a new batch."""
        if not self._waiting or len(self._open) >= self._batches:
            return
        bucket = self._waiting[0].bucket
        entries = [entry for entry in self._waiting if entry.bucket == bucket][: self._rows]
        for entry in entries:
            self._waiting.remove(entry)
        self._open.append(_Batch(entries, self._decode([entry.state for entry in entries])))

    def _emit(self, entry: _QueuedStream, is_over: bool, error: BaseException | None) -> None:
        if entry.is_done:
            return
        try:
            text = "" if error else entry.state.settled()
        except BaseException as raised:  # noqa: BLE001  # raised in this stream only
            text, error = "", raised
            entry.state.reason = entry.state.reason or "failed"
        if len(text) > entry.emitted:
            entry.pieces.append(text[entry.emitted :])
            entry.emitted = len(text)
        entry.error = error or entry.state.error
        entry.is_done = is_over or bool(error or entry.state.reason)

    def _remove(self, entry: _QueuedStream) -> None:
        """Remove a stream; its row is empty from the next token on."""
        with self._changed:
            if entry in self._waiting:
                self._waiting.remove(entry)
            if not entry.is_done:
                entry.is_done = True
                entry.state.reason = entry.state.reason or "cancelled"
                self._drop_ended()

    def _drop_ended(self) -> None:
        """Remove batches without open streams."""
        self._open = [
            batch for batch in self._open if not all(entry.is_done for entry in batch.entries)
        ]
