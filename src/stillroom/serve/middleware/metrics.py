"""Prometheus metrics: requests, tokens, and the latency of each stage.

Counts and times only; no client-chosen name becomes a label, so that clients can neither fill the
memory nor inject text. Knows nothing of models.
"""

from __future__ import annotations

import bisect
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "METRICS_CONTENT_TYPE",
    "TIMING_KEY",
    "MetricsMiddleware",
    "RequestTiming",
    "ServerMetrics",
]

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIMING_KEY = "stillroom.clock"
"""ASGI scope key of the request's RequestTiming."""
_OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_LATENCY_BUCKETS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
)
_METHODS = frozenset({"GET", "POST", "DELETE"})
_HELP = {
    "stillroom_requests_total": ("counter", "requests by route, method and status"),
    "stillroom_request_seconds": ("histogram", "time until the last byte, by route"),
    "stillroom_own_seconds": (
        "histogram",
        "time of the server's own work: without queueing and without the engine, by route",
    ),
    "stillroom_tokens_total": ("counter", "tokens by kind: prompt or completion"),
    "stillroom_answers_total": ("counter", "answers from documents by outcome"),
    "stillroom_stage_seconds": ("summary", "time of answers from documents by stage"),
}

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class RequestTiming:
    """Seconds of one request that were spent outside the server's own work."""

    queue_s: float = 0.0
    engine_s: float = 0.0


class ServerMetrics:
    """Monotonic counters; thread-safe."""

    def __init__(self) -> None:
        """Start all counters at zero."""
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, Labels], float] = defaultdict(float)
        self._buckets: dict[tuple[str, Labels], list[int]] = {}

    def count_request(
        self, route: str, method: str, status: int, seconds: float, own_s: float | None = None
    ) -> None:
        """Count a finished request; ``own_s`` is the server's own share of its seconds."""
        by = (("route", route), ("method", method), ("status", str(status)))
        where = (("route", route),)
        with self._lock:
            self._sums["stillroom_requests_total", by] += 1
            self._observe("stillroom_request_seconds", where, seconds)
            if own_s is not None:
                self._observe("stillroom_own_seconds", where, own_s)

    def _observe(self, name: str, where: Labels, seconds: float) -> None:
        bounds = _select_buckets(name)
        self._sums[f"{name}_sum", where] += seconds
        buckets = self._buckets.setdefault((name, where), [0] * (len(bounds) + 1))
        buckets[bisect.bisect_left(bounds, seconds)] += 1

    def count_reply(self, usage: Mapping[str, int], *answers: Mapping[str, Any]) -> None:
        """Count the tokens of a reply, and outcomes and stages of answers from documents.

        Args:
            usage: Token usage of the whole reply.
            answers: Details of each text; empty for a text without documents.
        """
        with self._lock:
            for kind in ("prompt", "completion"):
                self._sums["stillroom_tokens_total", (("kind", kind),)] += usage[f"{kind}_tokens"]
            for details in filter(None, answers):
                self._count_answer(details)

    def _count_answer(self, details: Mapping[str, Any]) -> None:
        outcome = "abstained" if details.get("abstained") else "answered"
        self._sums["stillroom_answers_total", (("outcome", outcome),)] += 1
        if details.get("cached"):
            return  # the stages belong to the cached answer
        for name, spent_ms in details.get("stage_ms", {}).items():
            stage = (("stage", name),)
            self._sums["stillroom_stage_seconds_sum", stage] += spent_ms / 1000
            self._sums["stillroom_stage_seconds_count", stage] += 1

    def render(self) -> str:
        """Return all metrics in the Prometheus text format."""
        with self._lock:
            sums = dict(self._sums)
            buckets = {label: list(counts) for label, counts in self._buckets.items()}
        lines = []
        for name, (kind, summary) in _HELP.items():
            lines += [f"# HELP {name} {summary}", f"# TYPE {name} {kind}"]
            lines += [
                _render_sample(full, labels, value)
                for (full, labels), value in sorted(sums.items())
                if full in {name, f"{name}_sum", f"{name}_count"}
            ]
            if kind == "histogram":
                lines += _render_histogram(name, buckets)
        return "\n".join(lines) + "\n"


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
        status, begun = 500, time.perf_counter()
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
            spent = time.perf_counter() - begun
            own_s = max(spent - clock.queue_s - clock.engine_s, 0.0) if clock.engine_s else None
            self.counters.count_request(route, method, status, spent, own_s)
            if self._log is not None:
                self._log(_format_log_line(scope, route, method, status, spent, own_s))


def _format_log_line(
    scope: Scope, route: str, method: str, status: int, spent: float, own_s: float | None
) -> str:
    """Return a log line with time, client, route and outcome; no content and no names."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": method,
        "route": route,
        "status": status,
        "ms": round(spent * 1000, 1),
        "own_ms": None if own_s is None else round(own_s * 1000, 1),
        "key": scope.get("stillroom.asker"),
    }
    return json.dumps(line)


def _select_buckets(name: str) -> tuple[float, ...]:
    return _OVERHEAD_BUCKETS if name == "stillroom_own_seconds" else _LATENCY_BUCKETS


def _render_histogram(name: str, buckets: Mapping[tuple[str, Labels], list[int]]) -> Iterator[str]:
    for (of, where), counts in sorted(buckets.items()):
        if of != name:
            continue
        total = 0
        for bound, count in zip([*map(str, _select_buckets(name)), "+Inf"], counts, strict=True):
            total += count
            yield _render_sample(f"{name}_bucket", (*where, ("le", bound)), total)
        yield _render_sample(f"{name}_count", where, total)


def _render_sample(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{text}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:.10g}"
