"""Working through requests on several threads, reporting on the caller's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from stillroom.records import Completion

__all__ = ["work_through"]

_LOOK_S = 0.1


def work_through(
    ask: Callable[[int, Callable[[], bool]], Completion],
    count: int,
    num_workers: int,
    fingerprint: str,
    on_done: Callable[[int, Completion], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Call ``ask(index, is_stopped)`` for every index on worker threads.

    Args:
        ask: Gives one completion; may look at ``is_stopped`` and give up early.
        count: How many there are.
        num_workers: How many at once.
        fingerprint: Names the model in the completions of what was cancelled.
        on_done: Called on this thread as each is done.
        is_cancelled: Asked on this thread several times a second.

    Returns:
        The completions in order; those not done are ``cancelled``.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(count):
        todo.put(index)
    done: queue.SimpleQueue[tuple[int, Completion | BaseException]] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, ask(index, stopped.is_set)))
            except BaseException as error:  # noqa: BLE001  # raised again on the caller's thread
                done.put((index, error))
                return

    threads = [
        threading.Thread(target=work, daemon=True, name=f"stillroom-ask-{number}")
        for number in range(min(num_workers, count))
    ]
    for thread in threads:
        thread.start()
    completions = [Completion("", "cancelled", model=fingerprint)] * count
    try:
        _collect(done, count, completions, on_done, is_cancelled)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    return completions


def _collect(
    done: queue.SimpleQueue[tuple[int, Completion | BaseException]],
    count: int,
    completions: list[Completion],
    on_done: Callable[[int, Completion], None] | None,
    is_cancelled: Callable[[], bool] | None,
) -> None:
    left = count
    while left:
        if is_cancelled is not None and is_cancelled():
            return
        try:
            index, given = done.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        left -= 1
        if isinstance(given, BaseException):
            raise given
        completions[index] = given
        if on_done is not None and given.finish_reason != "cancelled":
            on_done(index, given)
