"""HTTP transport: event-loop thread, addresses, bounded bodies, fields of OpenAI responses.

Blocking a thread per request costs more CPU time than the requests. Work can therefore be submitted
with a callback. A bounded number of lanes runs submitted work: a response frees its lane for the
next request at once, and callbacks run when no more responses arrive, so that slow callbacks do not
delay requests.

Bodies are bounded: a server may send without end, and a compressed megabyte may be a gigabyte.
Independent of endpoints.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import email.utils
import json
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stillroom.errors import BackendError, Cancelled

__all__ = [
    "EventLoopThread",
    "find_proxy",
    "get_first_choice",
    "is_key_safe",
    "make_cancelled_error",
    "parse_status",
    "read_body",
    "read_count",
    "read_error",
    "read_finish_reason",
    "read_retry_after",
    "split_model_address",
]

T = TypeVar("T")
_POLL_S = 0.2
_GATHER_WINDOW_S = 0.001


class EventLoopThread:
    """Runs coroutines on its own thread, for other threads."""

    def __init__(self, name: str, *, lanes: int = 16) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name=name)
        self.thread.start()
        self._handed_in: deque[tuple[Coroutine[Any, Any, Any], Callable[[Any], None]]] = deque()
        self._is_woken = False
        self._lanes, self._at_work = lanes, 0
        self._running: set[asyncio.Task[Any]] = set()  # the loop holds weak references only
        self._finished: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._telling: asyncio.TimerHandle | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the loop is closed."""
        return self.loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, T], is_stopped: Callable[[], bool] | None = None) -> T:
        """Run a coroutine and return its result.

        Raises:
            Cancelled: If ``is_stopped`` became true, or the loop was closed.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        while True:
            try:
                return future.result(_POLL_S)
            except concurrent.futures.CancelledError:
                raise make_cancelled_error() from None
            except concurrent.futures.TimeoutError:
                if future.done():  # completed just now, or raised TimeoutError itself
                    return future.result()
                if self.is_closed:
                    raise make_cancelled_error() from None
                if is_stopped is not None and is_stopped():
                    future.cancel()
                    raise make_cancelled_error() from None

    def submit(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None]
    ) -> None:
        """Run a coroutine; ``done`` is called on this thread with its result or exception.

        Raises:
            RuntimeError: If the loop is closed.
        """
        self._handed_in.append((work, done))
        if self._at_work < self._lanes and not self._is_woken:  # else a running lane takes it
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._take)

    async def rest(self, seconds: float) -> None:
        """Sleep within a submitted coroutine, freeing its lane meanwhile."""
        self._lanes += 1
        self._take()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._lanes -= 1

    def cancel(self, wait_s: float = 5.0) -> None:
        """Cancel running work; its callbacks receive ``Cancelled``.

        Not to be called on the thread itself; nor is ``close``.
        """
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result(wait_s)

    def close(self, wait_s: float = 5.0) -> None:
        """Stop the thread; idempotent."""
        if self.is_closed:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(wait_s)
        if self.thread.is_alive():
            return
        self.loop.close()
        self._is_woken = False  # so that later submissions raise
        while self._finished:
            done, value = self._finished.popleft()
            done(value)
        while self._handed_in:
            work, done = self._handed_in.popleft()
            work.close()
            done(make_cancelled_error())

    def _take(self) -> None:
        """Open lanes for the submitted work."""
        self._is_woken = False  # before the check: later submissions wake it again
        for _ in range(min(self._lanes - self._at_work, len(self._handed_in))):
            self._at_work += 1
            task = self.loop.create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self) -> None:
        """Run submitted work until none is left, or there are too many lanes."""
        try:
            while self._handed_in and self._at_work <= self._lanes:
                work, done = self._handed_in.popleft()
                try:
                    value = await work
                except asyncio.CancelledError:
                    self._tell(done, make_cancelled_error())
                    raise
                except BaseException as error:  # noqa: BLE001  # passed to the callback
                    value = error
                self._tell(done, value)
        finally:
            self._at_work -= 1
        if self._handed_in:  # submitted since the last check
            self._take()

    def _tell(self, done: Callable[[Any], None], value: Any) -> None:
        """Schedule a callback: soon, or at once if no work is left."""
        self._finished.append((done, value))
        if not self._handed_in:
            self._tell_all()
        elif self._telling is None:
            self._telling = self.loop.call_later(_GATHER_WINDOW_S, self._tell_all)

    def _tell_all(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        for _ in range(len(self._finished)):
            self.loop.call_soon(self._tell_next)

    def _tell_next(self) -> None:
        """Call the next callback; those that the loop no longer reaches are left to ``close``."""
        if self._finished:
            done, value = self._finished.popleft()
            done(value)


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def make_cancelled_error() -> Cancelled:
    """Return the exception for cancelled work."""
    return Cancelled("stopped while waiting", code="job.cancelled")


def split_model_address(reference: str) -> tuple[str, str]:
    """Return address and model name of ``http://host/v1#name``.

    Raises:
        BackendError: If the address has no host, or contains a user or password.
    """
    address, _, model = reference.partition("#")
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise BackendError(
            f"{parts.scheme}://{parts.hostname or ''} is not the address of an endpoint",
            code="backend.address",
            expected="http://host:port/v1#model, without user or password",
            next="correct the address; set keys in the environment (api_key_env)",
        )
    return address.rstrip("/"), model


@lru_cache(maxsize=64)
def is_key_safe(address: str) -> bool:
    """Return whether a key cannot be intercepted: https, or this machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def find_proxy(url: str) -> str | None:
    """Return the environment's proxy of a URL; none for plain http on this machine."""
    parts = urlsplit(url)
    if is_key_safe(url) and parts.scheme == "http":
        return None
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate"})


async def read_body(answer: Any, most: int) -> bytes:
    """Return the decompressed body of a response.

    Args:
        answer: Response of the HTTP library, without automatic decompression.
        most: Size limit in bytes; longer bodies are truncated somewhere above it.

    Raises:
        ValueError: If the encoding is unknown, or the body is not encoded as declared.
    """
    data = await _read_up_to(answer, most)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return data
    if encoding not in _COMPRESSIONS:
        raise ValueError(f"unsupported Content-Encoding {encoding:.40}")
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # deflate with and without a header
        try:
            return zlib.decompressobj(window).decompress(data, most + 1)
        except zlib.error:
            continue
    raise ValueError(f"the response is not valid {encoding}")


async def _read_up_to(answer: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            break
    return b"".join(parts)


_FINISH_REASONS = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    **dict.fromkeys(("error", "abort", "aborted", "cancelled", "canceled"), "broken"),
}
"""Finish reasons of servers, in our terms, other than the end of the answer."""


def get_first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice of a response or event; empty if there is none."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def read_count(value: object) -> int:
    """Return a token count; 0 for anything but a valid number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        return 0
    return int(value)


def read_finish_reason(reason: object) -> str:
    """Return ``stop``, ``length``, ``content_filter``, or ``broken``.

    ``broken``: the server aborted the answer.
    """
    return _FINISH_REASONS.get(str(reason or "stop").lower(), "stop")


def read_retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 if invalid."""
    value = value.strip()
    if not value:
        return 0.0
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else 0.0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def read_error(data: bytes) -> str:
    """Return the error message of a response, on one line."""
    try:
        value = json.loads(data)
        error = value.get("error", value)
        message = error if isinstance(error, str) else error.get("message") or json.dumps(error)
        kind = "" if isinstance(error, str) else str(error.get("code") or error.get("type") or "")
        text = f"{message} ({kind})" if kind else str(message)
    except (ValueError, AttributeError, RecursionError):
        text = data.decode("utf-8", "replace")
    return " ".join(text.split())[:400] or "no reason given"


def parse_status(error: object) -> int:
    """Return the HTTP status in an error object; 500 without one."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
