"""Stop sequences (``cut_at_stop``), context window (``limit_new_tokens``), and worker threads.

Called by ``models.local.generation`` and ``diffusion.backend``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from stillroom.errors import BackendError, Cancelled
from stillroom.records import Completion, Prompt, Sampling

__all__ = [
    "REFUSAL_CODES",
    "broadcast_sampling",
    "complete_prompts",
    "count_held_back",
    "cut_at_stop",
    "limit_new_tokens",
    "make_closed_error",
    "run_in_threads",
    "stream_with_completion",
]


def broadcast_sampling(
    prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
) -> list[Sampling]:
    """Return one sampling per prompt.

    Raises:
        BackendError: If the number of samplings differs from that of the prompts.
    """
    if isinstance(sampling, Sampling):
        return [sampling] * len(prompts)
    if len(sampling) != len(prompts):
        raise BackendError(
            f"{len(prompts)} prompts, but {len(sampling)} samplings",
            code="backend.request",
            expected="one sampling for all, or one per prompt",
            next="give a single Sampling",
        )
    return list(sampling)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the earliest stop sequence, and whether there was one."""
    indices = [index for index in (text.find(stop) for stop in stops if stop) if index >= 0]
    return (text[: min(indices)], True) if indices else (text, False)


def count_held_back(text: str, stops: Sequence[str]) -> int:
    """Return the number of last characters that may be the beginning of a stop sequence."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def limit_new_tokens(
    prompt_tokens: int, max_new_tokens: int, context_length: int, name: str
) -> int:
    """Return the number of new tokens (max_tokens), limited by the context window.

    Raises:
        BackendError: If the prompt leaves no room for a token.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise BackendError(
            f"the prompt has {prompt_tokens} tokens; the context length of {name} is "
            f"{context_length}",
            code="backend.context",
            expected=f"at most {context_length - 1} tokens",
            next="shorten the prompt, or raise context_length where the model allows",
        )
    return min(max_new_tokens, room)


def make_closed_error(name: str) -> BackendError:
    """Return the error for the use of a closed model."""
    return BackendError(
        f"{name} is closed",
        code="backend.closed",
        expected="an open model",
        next="open it again",
    )


_POLL_S = 0.1


def run_in_threads(
    ask: Callable[[int, Callable[[], bool]], Completion],
    count: int,
    num_workers: int,
    fingerprint: str,
    on_done: Callable[[int, Completion], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Call ``ask(index, is_stopped)`` for every index on worker threads.

    Returns:
        The completions in order; open ones are ``cancelled``.
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
        _collect_results(done, count, completions, on_done, is_cancelled)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    return completions


REFUSAL_CODES = {"backend.refused", "backend.malformed", "backend.answer"}
"""Codes of errors that concern one prompt only."""


def complete_prompts(
    ask: Callable[[int, Callable[[], bool]], Completion],
    count: int,
    num_workers: int,
    fingerprint: str,
    on_done: Callable[[int, Completion], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[Completion]:
    """Complete prompts as ``run_in_threads`` does; a refused one does not stop the others.

    A single prompt is completed on the caller's thread.

    Raises:
        BackendError: After all, if prompts were refused, which it lists; at once, if the endpoint
            fails.
    """
    refused: dict[int, BackendError] = {}
    lock = threading.Lock()

    def ask_or_note(index: int, is_stopped: Callable[[], bool]) -> Completion:
        try:
            return ask(index, is_stopped)
        except Cancelled:
            pass
        except BackendError as error:
            if error.code not in REFUSAL_CODES:
                raise
            with lock:
                refused[index] = error
        return Completion("", "cancelled", model=fingerprint)

    if count == 1:
        completions = [ask_or_note(0, is_cancelled or (lambda: False))]
        if on_done is not None and not refused and completions[0].finish_reason != "cancelled":
            on_done(0, completions[0])
    else:
        completions = run_in_threads(
            ask_or_note, count, num_workers, fingerprint, on_done, is_cancelled
        )
    if refused:
        raise BackendError([refused[index].problems[0] for index in sorted(refused)])
    return completions


def _collect_results(
    done: queue.SimpleQueue[tuple[int, Completion | BaseException]],
    count: int,
    completions: list[Completion],
    on_done: Callable[[int, Completion], None] | None,
    is_cancelled: Callable[[], bool] | None,
) -> None:
    remaining = count
    while remaining:
        if is_cancelled is not None and is_cancelled():
            return
        try:
            index, result = done.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        remaining -= 1
        if isinstance(result, BaseException):
            raise result
        completions[index] = result
        if on_done is not None and result.finish_reason != "cancelled":
            on_done(index, result)


T = TypeVar("T")


def stream_with_completion(stream: Generator[T, None, Completion]) -> Generator[T | Completion]:
    """Yield the items of a model's stream, and its completion last.

    A ``for`` loop would drop the return value of the generator. Closing this generator closes the
    stream.
    """
    yield (yield from stream)
