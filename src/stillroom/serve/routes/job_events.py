"""Events of a job, streamed while it runs (server-sent events)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.runner import JobRunner, find_job
from stillroom.serve.jobs.store import EVENTS_FILE, read_events
from stillroom.serve.routing import RouteTable, ServerContext

__all__ = ["add_routes"]

_POLL_S = 0.25
_KEEPALIVE_S = 15.0
_EVENT_BATCH = 200

_EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "stream of events",
        "content": {"text/event-stream": {"schema": {}}},
    },
    204: {"description": "the job has ended and the client has all its events"},
}


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route, if the server runs jobs."""
    if (runner := server.jobs) is None:
        return
    limits = server.limits
    followers = asyncio.Semaphore(limits.followers)

    @table.add(
        "GET",
        "/v1/jobs/{job_id}/events",
        "jobs:read",
        responses=_EVENT_RESPONSES,
        response_class=StreamingResponse,
    )
    async def events(
        job_id: str,
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**53)] = 0,
        follow: bool = True,
        last_event_id: Annotated[str, Header(max_length=20)] = "",
    ) -> Response:
        """Stream a job's events (server-sent), starting after the last one that the client has."""
        record = find_job(job_id, request, runner)
        start = int(last_event_id) if last_event_id.isdecimal() else after
        path = runner.jobs.folder_of(record.id) / EVENTS_FILE
        if record.is_over and start >= path.stat().st_size:
            return Response(status_code=204)  # an EventSource stops reconnecting on 204
        if followers.locked():
            raise ApiError(
                429,
                f"{limits.followers} clients already follow jobs",
                code="too_many_requests",
                headers={"Retry-After": "10"},
            )

        async def lines() -> AsyncIterator[bytes]:
            async with followers:
                async for line in _stream_events(path, start, record.id, runner, follow=follow):
                    yield line

        return StreamingResponse(lines(), media_type="text/event-stream")


async def _stream_events(
    path: Path, start: int, name: str, runner: JobRunner, *, follow: bool
) -> AsyncIterator[bytes]:
    """Yield events from a byte offset until the job, the server or the connection ends."""
    offset, last_sent = start, time.monotonic()
    yield b": events of a job\n\n"
    while True:
        record = runner.jobs.get(name)
        if record is None:
            return
        sent = 0
        for end, event in read_events(path, offset):
            yield _format_event(event["event"], event, end)
            offset, sent = end, sent + 1
            if sent == _EVENT_BATCH:
                break
        if sent:
            last_sent = time.monotonic()
            await asyncio.sleep(0)
            continue
        if record.is_over:
            yield _format_event("end", {"event": "end", "state": record.state}, offset)
            return
        if not follow or runner.is_stopping:
            return
        if time.monotonic() - last_sent > _KEEPALIVE_S:
            yield b": alive\n\n"
            last_sent = time.monotonic()
        await asyncio.sleep(_POLL_S)


def _format_event(kind: str, fields: Mapping[str, Any], end: int) -> bytes:
    data = json.dumps(fields, ensure_ascii=False)
    return f"id: {end}\nevent: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
