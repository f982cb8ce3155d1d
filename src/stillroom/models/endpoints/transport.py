"""HTTP transport: event-loop thread, addresses, bounded bodies, fields of OpenAI responses.

Who waits for an answer keeps a thread busy with waiting; waking as many threads as there are
requests costs more processor time than the requests do. So work can also be handed in with a
function that takes what comes of it, and nobody waits. A bounded number of lanes works on what is
handed in: an answer that has come makes room for the next request at once, and is told of when no
more of them come, so that who goes on with the answers does not hold up the requests.

A server may send without end, and a megabyte that was packed may be a gigabyte. Knows no endpoint.
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
    """Runs coroutines for threads that are not its own."""

    def __init__(self, name: str, *, lanes: int = 16) -> None:
        """Start the thread.

        Args:
            name: Of the thread.
            lanes: How much of what is handed in is worked on at once.
        """
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True, name=name)
        self.thread.start()
        self._handed_in: deque[tuple[Coroutine[Any, Any, Any], Callable[[Any], None]]] = deque()
        self._is_woken = False
        self._lanes, self._at_work = lanes, 0
        self._running: set[asyncio.Task[Any]] = set()  # which the loop itself forgets
        self._finished: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._telling: asyncio.TimerHandle | None = None

    @property
    def is_closed(self) -> bool:
        """Whether it can take no more."""
        return self.loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, T], is_stopped: Callable[[], bool] | None = None) -> T:
        """Return what a coroutine returns, or raise what it raises.

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
                if future.done():  # just after the wait for it gave up, or by its own error
                    return future.result()
                if self.is_closed:
                    raise make_cancelled_error() from None
                if is_stopped is not None and is_stopped():
                    future.cancel()
                    raise make_cancelled_error() from None

    def submit(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None]
    ) -> None:
        """Have a coroutine run, and ``done`` called on this thread with its value or its error.

        Raises:
            RuntimeError: If the loop is closed.
        """
        self._handed_in.append((work, done))
        if self._at_work < self._lanes and not self._is_woken:  # else a lane comes to it
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._take)

    async def rest(self, seconds: float) -> None:
        """Sleep within a coroutine that was handed in, and let another be worked on meanwhile."""
        self._lanes += 1
        self._take()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._lanes -= 1

    def cancel(self, wait_s: float = 5.0) -> None:
        """Break off what is at work, and have who waits for it told so.

        Not to be called on the thread itself; nor is ``close``.
        """
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result(wait_s)

    def close(self, wait_s: float = 5.0) -> None:
        """End the thread; closing twice does no harm."""
        if self.is_closed:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(wait_s)
        if self.thread.is_alive():
            return
        self.loop.close()
        self._is_woken = False  # so that who hands in more is refused
        while self._finished:
            done, value = self._finished.popleft()
            done(value)
        while self._handed_in:
            work, done = self._handed_in.popleft()
            work.close()
            done(make_cancelled_error())

    def _take(self) -> None:
        """Open as many lanes as there is work for."""
        self._is_woken = False  # before looking: what comes after the last look wakes it again
        for _ in range(min(self._lanes - self._at_work, len(self._handed_in))):
            self._at_work += 1
            task = self.loop.create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _work(self) -> None:
        """Work on what is handed in until nothing is left, or too many do."""
        try:
            while self._handed_in and self._at_work <= self._lanes:
                work, done = self._handed_in.popleft()
                try:
                    value = await work
                except asyncio.CancelledError:
                    self._tell(done, make_cancelled_error())
                    raise
                except BaseException as error:  # noqa: BLE001  # told to who handed it in
                    value = error
                self._tell(done, value)
        finally:
            self._at_work -= 1
        if self._handed_in:  # since the last look, when this lane still seemed to come to it
            self._take()

    def _tell(self, done: Callable[[Any], None], value: Any) -> None:
        """Tell what has come of work: soon, or at once where nothing else is left to do."""
        self._finished.append((done, value))
        if not self._handed_in:
            self._tell_all()
        elif self._telling is None:
            self._telling = self.loop.call_later(_GATHER_WINDOW_S, self._tell_all)

    def _tell_all(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        while self._finished:
            done, value = self._finished.popleft()
            self.loop.call_soon(done, value)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def make_cancelled_error() -> Cancelled:
    """Return what is told to who waits for work that was broken off."""
    return Cancelled("stopped while waiting", code="job.cancelled")


def split_model_address(reference: str) -> tuple[str, str]:
    """Return address and model name of ``http://host/v1#name``.

    Raises:
        BackendError: If the address has no host, or carries a user or password.
    """
    address, _, model = reference.partition("#")
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise BackendError(
            f"{parts.scheme}://{parts.hostname or ''} is not an endpoint's address",
            code="backend.address",
            expected="http://host:port/v1#model, without user or password",
            next="correct the address; keys go into the environment (api_key_env)",
        )
    return address.rstrip("/"), model


@lru_cache(maxsize=64)
def is_key_safe(address: str) -> bool:
    """Whether nobody on the way can read a key: https, or this very machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def find_proxy(url: str) -> str | None:
    """Return the environment's proxy for an address; none for plain HTTP on this machine."""
    parts = urlsplit(url)
    if is_key_safe(url) and parts.scheme == "http":
        return None
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate"})


async def read_body(answer: Any, most: int) -> bytes:
    """Return an answer's bytes as they were before they were packed.

    Args:
        answer: Of the HTTP library, which does not unpack it.
        most: What is longer is cut somewhere above so many bytes.

    Raises:
        ValueError: If it is packed in a way that nobody asked for, or not as it says.
    """
    data = await _read_up_to(answer, most)
    encoding = answer.headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return data
    if encoding not in _COMPRESSIONS:
        raise ValueError(f"the answer is packed as {encoding:.40}")
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # deflate comes with and without a head
        try:
            return zlib.decompressobj(window).decompress(data, most + 1)
        except zlib.error:
            continue
    raise ValueError(f"the answer is no {encoding}")


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


"""Why a server says that it ended, where that is not the end of the answer."""


def get_first_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice of an answer or of an event; empty where there is none."""
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def read_count(value: object) -> int:
    """Return a count of tokens as a server tells it; 0 for what is no count."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        return 0
    return int(value)


def read_finish_reason(told: object) -> str:
    """Return why an answer ended: ``stop``, ``length``, ``content_filter``, or ``broken``.

    Broken is what the server gave up on: what came is no answer.
    """
    return _FINISH_REASONS.get(str(told or "stop").lower(), "stop")


def read_retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for, by number or date; 0 if none."""
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
    """Return what an answer says went wrong, on one line."""
    try:
        value = json.loads(data)
        error = value.get("error", value)
        said = error if isinstance(error, str) else error.get("message") or json.dumps(error)
        kind = "" if isinstance(error, str) else str(error.get("code") or error.get("type") or "")
        text = f"{said} ({kind})" if kind else str(said)
    except (ValueError, AttributeError, RecursionError):
        text = data.decode("utf-8", "replace")
    return " ".join(text.split())[:400] or "no reason given"


def parse_status(error: object) -> int:
    """Return the HTTP status that the body of an answer tells; 500 where it tells none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500
