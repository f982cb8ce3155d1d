"""HTTP client of OpenAI-compatible endpoints: retries, exponential backoff and rate limits.

Retries transient failures (408, 409, 425, 429, 5xx, broken connections, invalid JSON) with
exponential backoff and jitter; honors Retry-After for the whole endpoint; spaces requests by the
rate limits; never retries permanent failures (other 4xx, exhausted quota). Every wait is bounded,
also for answers that trickle in or are compressed. The API key is never part of a message, and
never sent after a redirect. Answers that are not valid JSON of a schema are retried by their
callers (``synth.prompting.stepwise``).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import queue
import random
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from stillroom.errors import BackendError, MissingExtraError
from stillroom.models.endpoints.transport import (
    EventLoopThread,
    find_proxy,
    get_first_choice,
    make_cancelled_error,
    parse_status,
    read_body,
    read_count,
    read_error,
    read_retry_after,
)
from stillroom.models.requests import make_closed_error
from stillroom.text.unicode import replace_surrogates

__all__ = [
    "Endpoint",
    "RequestPolicy",
    "find_only_model",
]

T = TypeVar("T")
_RETRIED_STATUSES = {408, 409, 425, 429}
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_REFUSED_TRIES = 3
_MAX_BODY_BYTES = 64 << 20
_MAX_ERROR_BYTES = 64 << 10
_MAX_SHOWN_BYTES = 160


@dataclass(frozen=True)
class RequestPolicy:
    """Timeouts, retries, concurrency and rate limits of an endpoint."""

    tries: int = 6
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 300.0
    max_wait_s: float = 120.0
    requests_per_minute: float = 0.0
    concurrency: int = 16
    tokens_per_minute: float = 0.0
    answer_timeout_s: float = 900.0


class _TransientError(Exception):  # never leaves this module
    """Transient failure; ``wait_s`` is the wait requested by the server."""

    def __init__(self, message: str, *, code: str = "backend.down", wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.wait_s = wait_s


class Endpoint:
    """An address with its API key and limits, and the thread of its event loop."""

    def __init__(
        self, address: str, *, api_key: str = "", patience: RequestPolicy | None = None
    ) -> None:
        """Set up requests to ``address`` (as ``http://host:8000/v1``); nothing is sent yet.

        Raises:
            MissingExtraError: If aiohttp is not installed.
        """
        try:
            import aiohttp
        except ImportError as error:
            raise MissingExtraError.of("aiohttp", "openai", "asking an endpoint") from error
        self.http = aiohttp
        """HTTP library (aiohttp), imported with the first endpoint."""
        self.address = address.rstrip("/")
        self.patience = patience or RequestPolicy()
        self._key = api_key
        self._not_before = 0.0
        self._next_turn = 0.0
        self._next_tokens = 0.0
        self._sessions: list[Any] = []  # at most one, from the first request on
        self._thread = EventLoopThread("stillroom-endpoint", lanes=self.patience.concurrency)
        # Also called by the garbage collector and at exit.
        self._finish = weakref.finalize(self, _shut_down, self._thread, self._sessions)

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """POST ``body`` (or GET without one) and return the JSON object of the response.

        Raises:
            BackendError: If the endpoint is down, refuses, or the response is not JSON.
            Cancelled: If ``is_stopped`` became true.
        """
        return self.wait(self.request(path, body), is_stopped)

    def submit(
        self, work: Coroutine[Any, Any, T], done: Callable[[T | BaseException], None]
    ) -> None:
        """Run a coroutine of this endpoint; ``done`` is called on its thread.

        Raises:
            BackendError: If the endpoint is closed.
        """
        self._check_open(work)
        self._thread.submit(work, done)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """POST ``body`` and yield the JSON of every server-sent event until ``[DONE]``.

        A stream that ends without it is complete only after an event with a finish reason.

        Raises:
            BackendError: As in ``ask``; interrupted streams are not retried.
        """
        events: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for event in self._stream(path, body):
                    events.put(event)
                events.put(None)
            except asyncio.CancelledError:
                events.put(make_cancelled_error())
            except BaseException as error:  # noqa: BLE001  # raised again on the consumer's thread
                events.put(error)

        future = asyncio.run_coroutine_threadsafe(pump(), self._thread.loop)
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            future.cancel()

    def close(self) -> None:
        """Close connections and stop the thread; idempotent."""
        self._finish()

    def wait(self, work: Coroutine[Any, Any, T], is_stopped: Callable[[], bool] | None = None) -> T:
        """Run a coroutine of this endpoint and return its result.

        Raises:
            BackendError: If the endpoint is closed, or raised by the coroutine.
            Cancelled: If ``is_stopped`` became true.
        """
        self._check_open(work)
        return self._thread.wait(work, is_stopped)

    def _check_open(self, work: Coroutine[Any, Any, Any]) -> None:
        if self._thread.is_closed:
            work.close()
            raise make_closed_error(self.address)

    async def request(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """POST ``body`` (or GET) on the endpoint's thread; see ``ask``.

        Raises:
            BackendError: If the endpoint is down, refuses, or the response is not JSON.
        """
        begun, refused = time.monotonic(), 0
        for attempt in range(self.patience.tries):
            reserved = await self._await_turn(body)
            try:
                answer = await self._send(path, body)
                self._settle(reserved, answer)
                return answer
            except _TransientError as problem:
                self._settle(reserved, {})
                refused += problem.code == "backend.down"
                waited = time.monotonic() - begun
                pause = problem.wait_s or _backoff(attempt)
                last = attempt + 1 == self.patience.tries or refused >= _REFUSED_TRIES
                if last or waited + pause > self.patience.max_wait_s:
                    raise self._give_up(problem, attempt + 1, waited) from problem
                await self._thread.rest(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _await_turn(self, body: Mapping[str, Any] | None = None) -> float:
        """Wait for Retry-After and the rate limits; return the reserved tokens.

        Reserves the maximum that the request can use; ``_settle`` returns the rest.

        Raises:
            BackendError: If Retry-After exceeds the maximum wait.
        """
        while (remaining := self._not_before - time.monotonic()) > 0:
            if remaining > self.patience.max_wait_s:
                raise BackendError(
                    f"{self.address} asks for a pause of {remaining:.0f} s",
                    code="backend.rate-limit",
                    expected=f"a wait of at most {self.patience.max_wait_s:.0f} s",
                    next="run the command again later, with --resume",
                )
            await asyncio.sleep(remaining)
        if self.patience.requests_per_minute > 0:
            now = time.monotonic()
            turn = max(now, self._next_turn)
            self._next_turn = turn + 60.0 / self.patience.requests_per_minute
            if turn > now:
                await asyncio.sleep(turn - now)
        if self.patience.tokens_per_minute <= 0 or body is None:
            return 0.0
        # The maximum tokens of a request: its text at 4 bytes per token, and its limit.
        size = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        tokens = size / 4 + float(body.get("max_tokens") or 0)
        now = time.monotonic()
        turn = max(now, self._next_tokens)
        self._next_tokens = turn + tokens * 60.0 / self.patience.tokens_per_minute
        if turn > now:
            await asyncio.sleep(turn - now)
        return tokens

    def _settle(self, reserved: float, answer: Mapping[str, Any]) -> None:
        """Return unused reserved tokens; without a usage object all count as used."""
        if reserved:
            usage = answer.get("usage")
            counts = usage if isinstance(usage, dict) else {}
            used = read_count(counts.get("total_tokens"))
            if not used:
                used = read_count(counts.get("prompt_tokens"))
                used += read_count(counts.get("completion_tokens"))
            spare = max(reserved - used, 0.0) if answer and used else 0.0
            self._next_tokens -= spare * 60.0 / self.patience.tokens_per_minute

    async def _send(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        total = max(self.patience.answer_timeout_s, self.patience.read_timeout_s)
        async with self._request(path, body, total) as answer:
            try:
                data = await self._read_all(answer)
            except (self.http.ClientError, TimeoutError) as error:
                raise _TransientError(
                    f"the answer broke off ({_model_name(error)})", code="backend.broken"
                ) from error
            except ValueError as error:
                raise _TransientError(str(error), code="backend.malformed") from error
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _malformed_error("JSON", data) from error
        if not isinstance(value, dict):
            raise _malformed_error("a JSON object", data)
        if value.get("error") and "choices" not in value:  # relays send errors with HTTP 200
            raise self.judge_failure(
                parse_status(value["error"]), self.redact(read_error(data)), ""
            )
        return value

    async def _read_all(self, answer: Any) -> bytes:
        """Return the body of a response, up to the size limit.

        Raises:
            BackendError: If the body is larger than any completion.
        """
        data = await read_body(answer, _MAX_BODY_BYTES)
        if len(data) > _MAX_BODY_BYTES:
            raise BackendError(
                f"{self.address}: the response is larger than {_MAX_BODY_BYTES >> 20} MiB",
                code="backend.answer",
                expected="a completion",
                next="lower max_new_tokens, or check what the server sends",
            )
        return data

    async def _stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        await self._await_turn()
        is_whole = False
        try:
            async with self._request(path, body) as answer:
                async for line in answer.content:
                    text = line.decode("utf-8", "replace").strip()
                    if not text.startswith("data:"):
                        continue
                    text = text.removeprefix("data:").strip()
                    if text == "[DONE]":
                        return
                    value = json.loads(text)
                    if isinstance(value, dict):
                        is_whole = is_whole or bool(get_first_choice(value).get("finish_reason"))
                        yield value
            if not is_whole:
                raise _TransientError(
                    "the stream ended before the answer was complete", code="backend.broken"
                )
        except _TransientError as problem:
            raise self._give_up(problem, 1, 0.0) from problem
        except (self.http.ClientError, TimeoutError, ValueError, RecursionError) as error:
            broken = _TransientError(
                f"the stream broke off ({_model_name(error)})", code="backend.broken"
            )
            raise self._give_up(broken, 1, 0.0) from error

    @contextlib.asynccontextmanager
    async def _request(
        self, path: str, body: Mapping[str, Any] | None, total_s: float | None = None
    ) -> AsyncIterator[Any]:
        """Send a request, and yield the response with its status checked."""
        http, url = self.http, self.address + path
        session = await self.open_session()
        try:
            answer = await session.request(
                "GET" if body is None else "POST",
                url,
                json=replace_surrogates(body),
                allow_redirects=False,
                proxy=find_proxy(url),
                timeout=self.limit_wait(total_s),
            )
            if answer.status != 200:
                raise await self._read_failure(answer)
        except TimeoutError as error:
            raise _TransientError("no answer in time", code="backend.timeout") from error
        except http.ClientConnectionError as error:
            # A server that hung up is not down: the request may be the cause.
            is_down = isinstance(error, http.ClientConnectorError)
            what = "cannot be reached" if is_down else "hung up"
            code = "backend.down" if is_down else "backend.broken"
            raise _TransientError(f"{what} ({_model_name(error)})", code=code) from error
        except http.InvalidURL as error:
            raise BackendError(
                f"{url} is not a URL",
                code="backend.address",
                expected="http://host:port/v1#model",
                next="correct the address",
            ) from error
        except http.ClientError as error:
            raise _TransientError(
                f"not an HTTP server ({_model_name(error)})", code="backend.broken"
            ) from error
        try:
            yield answer
        finally:
            answer.release()

    async def _read_failure(self, answer: Any) -> Exception:
        """Return the exception for a response whose status is not 200."""
        try:
            message = self.redact(read_error(await read_body(answer, _MAX_ERROR_BYTES)))
        except ValueError as error:
            message = str(error)
        finally:
            answer.release()
        if 300 <= answer.status < 400:
            return _redirect_error(self, answer.status, answer.headers.get("Location", ""))
        return self.judge_failure(answer.status, message, answer.headers.get("Retry-After", ""))

    async def open_session(self) -> Any:
        """Return the HTTP session, created on first use on the endpoint's thread."""
        if not self._sessions:
            patience = self.patience
            session = self.http.ClientSession(
                timeout=self.limit_wait(None),
                auto_decompress=False,  # decompressed with a size limit by read_body
                connector=self.http.TCPConnector(limit=max(patience.concurrency, 1)),
                headers={
                    "Accept-Encoding": "identity",
                    **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                },
            )
            self._sessions.append(session)
        return self._sessions[0]

    def limit_wait(self, total_s: float | None) -> Any:
        """Return the HTTP library's timeouts; ``total_s`` bounds the whole response."""
        return self.http.ClientTimeout(
            total=total_s,
            sock_connect=self.patience.connect_timeout_s,
            sock_read=self.patience.read_timeout_s,
        )

    def hold_until(self, wait_s: float) -> None:
        """Block requests to this endpoint for ``wait_s`` seconds."""
        self._not_before = max(self._not_before, time.monotonic() + wait_s)

    def judge_failure(self, status: int, message: str, retry_after: str) -> Exception:
        """Return the exception for an error response, transient or permanent.

        Blocks requests until Retry-After has passed, if the server asks for it.
        """
        if "insufficient_quota" in message or status == 402:
            return _fatal_error(
                self, status, message, "backend.quota", "add credit, or use another key"
            )
        if status in _RETRIED_STATUSES or status >= 500:
            wait = read_retry_after(retry_after)
            if wait and status in {429, 503}:
                self.hold_until(wait)
            code = "backend.rate-limit" if status == 429 else "backend.unavailable"
            asks = f"; it asks to wait {wait:.0f} s" if wait else ""
            return _TransientError(f"HTTP {status}: {message}{asks}", code=code, wait_s=wait)
        if status in {401, 403}:
            step = "set the key: export OPENAI_API_KEY=..., or api_key_env"
            return _fatal_error(self, status, message, "backend.unauthorized", step)
        if status == 404:
            step = f"curl {self.address}/models"
            return _fatal_error(self, status, message, "backend.not-found", step)
        return _fatal_error(
            self, status, message, "backend.refused", "change the request accordingly"
        )

    def redact(self, text: str) -> str:
        """Mask the API key in a text, in case the server repeats it."""
        return text.replace(self._key, "***") if self._key else text

    def _give_up(self, problem: _TransientError, tries: int, waited: float) -> BackendError:
        steps = {
            "backend.rate-limit": "lower concurrency or requests_per_minute, or wait",
            "backend.malformed": "check that the address is an OpenAI-compatible API (…/v1)",
        }
        return BackendError(
            f"{self.address}: {self.redact(str(problem))}, {tries} tries in {waited:.0f} s",
            code=problem.code,
            expected="a responding endpoint",
            next=steps.get(problem.code, f"start the server, then: curl {self.address}/models"),
        )


def find_only_model(endpoint: Endpoint) -> str:
    """Return the name of a server's only model.

    Raises:
        BackendError: If it serves none or several; lists them.
    """
    answer = endpoint.ask("/models")
    names = [
        str(entry["id"])
        for entry in answer.get("data") or []
        if isinstance(entry, dict) and "id" in entry
    ]
    if len(names) == 1:
        return names[0]
    raise BackendError(
        f"{endpoint.address} serves {len(names)} models: {', '.join(names[:8])}",
        code="backend.which-model",
        expected="a model name",
        next=f"write {endpoint.address}#NAME",
    )


def _malformed_error(expected: str, data: bytes) -> _TransientError:
    start = " ".join(data[:_MAX_SHOWN_BYTES].decode("utf-8", "replace").split())
    shown = f": {start!r}" if start else "; it is empty"
    return _TransientError(f"the response is not {expected}{shown}", code="backend.malformed")


def _shut_down(running: EventLoopThread, sessions: list[Any]) -> None:
    """Cancel requests, close the session, then the loop; not on the loop's thread."""
    running.cancel()
    for session in sessions:
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(session.close(), running.loop).result(5)
    running.close()


def _fatal_error(
    endpoint: Endpoint, status: int, message: str, code: str, step: str
) -> BackendError:
    return BackendError(
        f"{endpoint.address} answered HTTP {status}: {message}",
        code=code,
        expected="HTTP 200",
        next=step,
    )


def _redirect_error(endpoint: Endpoint, status: int, location: str) -> BackendError:
    """Return the error for a redirect; the query string is removed, as it may hold a secret."""
    target = endpoint.redact(location.split("?", 1)[0])[:200] or "nowhere"
    return BackendError(
        f"{endpoint.address} answered HTTP {status}: it redirects to {target}",
        code="backend.address",
        expected="an address that responds itself: redirects are not followed",
        next="use the address of the redirect, if you trust it",
    )


def _backoff(attempt: int) -> float:
    return min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**attempt) * random.uniform(0.5, 1.0)


def _model_name(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    return f"{type(error).__name__}, {os.strerror(number)}" if number else type(error).__name__
