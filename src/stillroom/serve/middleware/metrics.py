"""Prometheus metrics: requests, tokens, and the latency of each stage.

Counts and times only; no client-chosen name becomes a label, so that clients can neither fill the
memory nor inject text. Knows nothing of models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, Summary
from prometheus_client.exposition import generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "TIMING_KEY",
    "MetricsMiddleware",
    "RequestTiming",
    "ServerMetrics",
]

TIMING_KEY = "stillroom.clock"
"""ASGI scope key of the request's RequestTiming."""
_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_METHODS = frozenset({"GET", "POST", "DELETE"})


@dataclass(slots=True)
class RequestTiming:
    """Seconds of one request: in the queue, in the engine, and until its first token."""

    queue_s: float | None = None
    """None if it did not wait for a turn: its route needs none, or the queue was full."""
    engine_s: float = 0.0
    first_token_s: float | None = None
    """Time to first token (TTFT) from the request's arrival, its wait in the queue included."""
    begun: float = field(default_factory=time.perf_counter)

    def add_wait(self, seconds: float) -> None:
        """Add a wait in the queue, which may have ended without a turn."""
        self.queue_s = (self.queue_s or 0.0) + seconds

    def mark_token(self) -> None:
        """Note that a token is there; only the first counts."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.begun


class ServerMetrics:
    """Monotonic counters in a registry of their own; thread-safe."""

    def __init__(self) -> None:
        self._registry = registry = _Registry()
        self._requests = Counter(
            "stillroom_requests_total",
            "requests by route, method and status",
            ("route", "method", "status"),
            registry=registry,
        )
        self._request_s = Histogram(
            "stillroom_request_seconds",
            "time until the last byte, by route",
            ("route",),
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._own_s = Histogram(
            "stillroom_own_seconds",
            "time of the server's own work: without queueing and without the engine, by route",
            ("route",),
            registry=registry,
            buckets=_OVERHEAD_BUCKETS,
        )
        self._first_token_s = Histogram(
            "stillroom_time_to_first_token_seconds",
            "time until the first token of a text, the wait in the queue included, by route",
            ("route",),
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._queue_s = Histogram(
            "stillroom_queue_seconds",
            "wait for a turn, also of requests that gave it up, by route",
            ("route",),
            registry=registry,
            buckets=_LATENCY_BUCKETS,
        )
        self._tokens = Counter(
            "stillroom_tokens_total",
            "tokens by kind: prompt or completion",
            ("kind",),
            registry=registry,
        )
        self._answers = Counter(
            "stillroom_answers_total",
            "answers from documents by outcome",
            ("outcome",),
            registry=registry,
        )
        self._stage_s = Summary(
            "stillroom_stage_seconds",
            "time of answers from documents by stage",
            ("stage",),
            registry=registry,
        )

    def count_request(
        self,
        route: str,
        method: str,
        status: int,
        seconds: float,
        *,
        own_s: float | None = None,
        timing: RequestTiming | None = None,
    ) -> None:
        """Count a finished request; ``own_s`` is the server's own share of its seconds."""
        self._requests.labels(route, method, status).inc()
        self._request_s.labels(route).observe(seconds)
        if own_s is not None:
            self._own_s.labels(route).observe(own_s)
        if timing is not None and timing.first_token_s is not None:
            self._first_token_s.labels(route).observe(timing.first_token_s)
        if timing is not None and timing.queue_s is not None:
            self._queue_s.labels(route).observe(timing.queue_s)

    def count_reply(self, usage: Mapping[str, int], *answers: Mapping[str, Any]) -> None:
        """Count the tokens of a reply, and outcomes and stages of answers from documents.

        ``answers`` are the details of each text; empty for a text without documents.
        """
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind).inc(usage[f"{kind}_tokens"])
        for details in filter(None, answers):
            self._answers.labels("abstained" if details.get("abstained") else "answered").inc()
            if not details.get("cached"):  # the stages of a cached answer were counted with it
                for stage, spent_ms in details.get("stage_ms", {}).items():
                    self._stage_s.labels(stage).observe(spent_ms / 1000)

    def render(self) -> str:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry).decode()


class _Registry(CollectorRegistry):
    """Registry without the times of creation that the library adds to every series."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric


class MetricsMiddleware:
    """Counts every request, including refused ones."""

    def __init__(
        self, app: ASGIApp, *, counters: ServerMetrics, log: Callable[[str], None] | None = None
    ) -> None:
        """Wrap ``app``; ``log`` receives one line of JSON for each request."""
        self.app, self.counters, self._log = app, counters, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, and count it when it ends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        clock = scope[TIMING_KEY] = RequestTiming()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            spent = time.perf_counter() - clock.begun
            waited = clock.queue_s or 0.0
            own_s = max(spent - waited - clock.engine_s, 0.0) if clock.engine_s else None
            self.counters.count_request(route, method, status, spent, own_s=own_s, timing=clock)
            if self._log is not None:
                self._log(_format_log_line(scope, route, method, status, spent, own_s))


def _format_log_line(
    scope: Scope, route: str, method: str, status: int, spent: float, own_s: float | None
) -> str:
    """Return a log line with time, client, route and outcome; no content and no names."""

    def to_ms(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds * 1000, 1)

    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": method,
        "route": route,
        "status": status,
        "ms": round(spent * 1000, 1),
        "queue_ms": to_ms(scope[TIMING_KEY].queue_s),
        "first_token_ms": to_ms(scope[TIMING_KEY].first_token_s),
        "own_ms": to_ms(own_s),
        "key": scope.get("stillroom.asker"),
    }
    return json.dumps(line)
