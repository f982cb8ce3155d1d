"""The jobs API: recipes in, events and artifacts out.

Routes only translate; ``running`` runs, ``confining`` says what may run, ``workspace`` where.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import Field

from stillroom.errors import DataError
from stillroom.jobs import working_folder
from stillroom.provenance import ARTIFACT_FILE
from stillroom.serve import answers
from stillroom.serve.describing import EVENTS
from stillroom.serve.limits import Limits
from stillroom.serve.recipe_routes import SentRecipe, add_recipes, find_tenant, read_sent
from stillroom.serve.refusals import Refusal
from stillroom.serve.running import JobRunner
from stillroom.serve.tickets import EVENTS_FILE, State, Ticket, read_events
from stillroom.serve.workspace import Root

__all__ = ["SentJob", "add_jobs"]

_LOOK_S = 0.25
_YAML: dict[int | str, dict[str, Any]] = {200: {"content": {"application/yaml": {"schema": {}}}}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"*/*": {"schema": {}}}},
    206: {"description": "the range that was asked for"},
    416: {"description": "the file has no such range"},
}
_ALIVE_S = 15.0
_AT_ONCE = 200
_MOST_FILES = 10_000
_PAGE = 100
_TAIL = 1 << 15


class SentJob(SentRecipe):
    """POST /v1/jobs."""

    name: str = Field("", max_length=200, description="what the client calls the job")


def add_jobs(app: FastAPI, runner: JobRunner, limits: Limits) -> None:
    """Add the routes of jobs, recipes and the workspace to an app."""
    add_recipes(app, runner, limits)
    _add_jobs(app, runner)
    _add_one_job(app, runner)
    _add_events(app, runner, limits)
    _add_results(app, runner)


def _add_jobs(app: FastAPI, runner: JobRunner) -> None:
    @app.post(
        "/v1/jobs",
        status_code=201,
        responses={201: {"model": answers.Job}, 200: {"model": answers.Job}},
    )
    async def submit(
        body: SentJob,
        request: Request,
        response: Response,
        idempotency_key: Annotated[str, Header(max_length=200)] = "",
    ) -> dict[str, Any]:
        """Put a job in line; the same Idempotency-Key again gives the same job."""
        tenant = find_tenant(request, runner)
        recipe = await read_sent(body, runner, tenant)
        ticket, is_new = runner.submit(recipe, tenant, label=body.name, request_key=idempotency_key)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"/v1/jobs/{ticket.id}"
        return _describe(ticket, runner)

    @app.get("/v1/jobs", responses={200: {"model": answers.JobList}})
    async def jobs(
        request: Request,
        state: State | None = None,
        limit: Annotated[int, Query(ge=1, le=_PAGE)] = _PAGE,
        before: Annotated[str, Query(max_length=80)] = "",
    ) -> dict[str, Any]:
        """List the tenant's jobs, newest first; ``before`` an id goes on from there."""
        tenant = find_tenant(request, runner)
        mine = [
            ticket
            for ticket in reversed(list(runner.tickets))
            if ticket.tenant == tenant
            and (state is None or ticket.state == state)
            and (not before or ticket.id < before)
        ]
        data = [_describe(ticket, runner) for ticket in mine[:limit]]
        return {"object": "list", "data": data, "has_more": len(mine) > limit}


def _add_one_job(app: FastAPI, runner: JobRunner) -> None:
    @app.get("/v1/jobs/{job_id}", responses={200: {"model": answers.Job}})
    async def job(job_id: str, request: Request) -> dict[str, Any]:
        """Describe a job as it stands."""
        return _describe(_find(job_id, request, runner), runner)

    @app.delete("/v1/jobs/{job_id}", status_code=204)
    async def remove(job_id: str, request: Request) -> Response:
        """Forget a job that is over, and remove its folder."""
        ticket = _find(job_id, request, runner)
        await runner.remove(ticket.id)
        return Response(status_code=204)

    @app.post("/v1/jobs/{job_id}/cancel", responses={200: {"model": answers.Job}})
    async def cancel(job_id: str, request: Request) -> dict[str, Any]:
        """Stop a job at its next safe point; asked again, at once."""
        return _describe(runner.cancel(_find(job_id, request, runner).id), runner)

    @app.post("/v1/jobs/{job_id}/resume", responses={200: {"model": answers.Job}})
    async def resume(job_id: str, request: Request) -> dict[str, Any]:
        """Put a job that failed or was cancelled in line again."""
        return _describe(runner.resume(_find(job_id, request, runner).id), runner)

    @app.get("/v1/jobs/{job_id}/recipe", responses=_YAML, response_class=Response)
    async def recipe(job_id: str, request: Request) -> Response:
        """Return the resolved recipe of a job as YAML."""
        ticket = _find(job_id, request, runner)
        return Response(runner.tickets.recipe(ticket.id), media_type="application/yaml")


def _add_events(app: FastAPI, runner: JobRunner, limits: Limits) -> None:
    followers = asyncio.Semaphore(limits.followers)

    @app.get("/v1/jobs/{job_id}/events", responses=EVENTS, response_class=StreamingResponse)
    async def events(
        job_id: str,
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**53)] = 0,
        follow: bool = True,
        last_event_id: Annotated[str, Header(max_length=20)] = "",
    ) -> Response:
        """Send a job's events (server-sent) from after the last that the client has."""
        ticket = _find(job_id, request, runner)
        start = int(last_event_id) if last_event_id.isdecimal() else after
        path = runner.tickets.place(ticket.id) / EVENTS_FILE
        if ticket.is_over and start >= path.stat().st_size:
            return Response(status_code=204)  # tells an EventSource that there is no more
        if followers.locked():
            raise Refusal(
                429,
                f"{limits.followers} clients follow jobs already",
                code="too_many_requests",
                headers={"Retry-After": "10"},
            )

        async def lines() -> AsyncIterator[bytes]:
            async with followers:
                async for line in _follow(path, start, ticket.id, runner, follow=follow):
                    yield line

        return StreamingResponse(lines(), media_type="text/event-stream")


def _add_results(app: FastAPI, runner: JobRunner) -> None:
    @app.get("/v1/jobs/{job_id}/files", responses={200: {"model": answers.JobFiles}})
    async def files(job_id: str, request: Request) -> dict[str, Any]:
        """List the files of a job: of its artifact, or what there is so far."""
        ticket = _find(job_id, request, runner)
        return await asyncio.to_thread(_list_files, ticket, runner)

    @app.get("/v1/jobs/{job_id}/files/{path:path}", responses=_FILE, response_class=Response)
    async def file(job_id: str, path: str, request: Request) -> Response:
        """Send a file of a finished job; ranges are served."""
        ticket = _find(job_id, request, runner)
        folder = runner.out_of(ticket)
        try:
            found = Root(folder).find(path)
        except DataError:
            found = folder
        if not found.is_file() or found.is_symlink():
            raise Refusal(404, f"the job has no file {path[:200]!r}", code="unknown_file")
        return FileResponse(
            found, media_type=_media_type(found), filename=found.name,
            content_disposition_type="attachment",
        )  # fmt: skip


def _find(name: str, request: Request, runner: JobRunner) -> Ticket:
    """Return a ticket of the tenant; another's is as unknown as one that never was."""
    ticket = runner.tickets.get(name)
    if ticket is None or ticket.tenant != find_tenant(request, runner):
        raise Refusal(404, f"there is no job {name[:80]!r}", code="unknown_job")
    return ticket


def _describe(ticket: Ticket, runner: JobRunner) -> dict[str, Any]:
    folder = f"jobs/{ticket.id}"
    problems = [dict(problem) for problem in ticket.problems]
    error = {"code": problems[0]["code"], "message": problems[0]["what"]} if problems else None
    return {
        "id": ticket.id,
        "object": "job",
        "kind": ticket.kind,
        "name": ticket.label,
        "state": "cancelling" if ticket.is_cancelling else ticket.state,
        "position": runner.position(ticket),
        "submitted_at": ticket.submitted,
        "started_at": ticket.started or None,
        "ended_at": ticket.ended or None,
        "takes": ticket.takes,
        "progress": _find_progress(ticket, runner),
        "can_cancel": not ticket.is_over,
        "can_resume": ticket.state in {"failed", "cancelled"},
        "error": {**error, "problems": problems} if error else None,
        "artifact": {**ticket.artifact, "path": folder} if ticket.artifact else None,
    }


def _find_progress(ticket: Ticket, runner: JobRunner) -> dict[str, Any] | None:
    """Return the last step and count of a job that runs, as its events have them."""
    if ticket.state != "running":
        return None
    path = runner.tickets.place(ticket.id) / EVENTS_FILE
    found: dict[str, Any] = {}
    for _, event in read_events(path, max(path.stat().st_size - _TAIL, 0)):
        if event["event"] in {"step", "progress"}:
            found[event["event"]] = {key: event[key] for key in event if key != "event"}
    return found or None


def _list_files(ticket: Ticket, runner: JobRunner) -> dict[str, Any]:
    folder = runner.out_of(ticket)
    is_finished = (folder / ARTIFACT_FILE).is_file()
    place = folder if folder.is_dir() else working_folder(folder)
    found: list[dict[str, Any]] = []
    for path in sorted(place.rglob("*")) if place.is_dir() else ():
        inner = path.relative_to(place)
        if path.is_symlink() or not path.is_file() or any(p.startswith(".") for p in inner.parts):
            continue
        try:
            size = path.stat().st_size
        except OSError:  # a running job moved it away
            continue
        found.append({"path": inner.as_posix(), "size_bytes": size})
        if len(found) > _MOST_FILES:
            break
    has_more = len(found) > _MOST_FILES
    return {
        "object": "list",
        "finished": is_finished,
        "data": found[:_MOST_FILES],
        "has_more": has_more,
    }


def _media_type(path: Path) -> str:
    kinds: Mapping[str, str] = {
        ".json": "application/json",
        ".jsonl": "application/jsonl",
        ".yaml": "application/yaml",
        ".html": "text/html; charset=utf-8",
        ".txt": "text/plain; charset=utf-8",
        ".png": "image/png",
    }
    return kinds.get(path.suffix, "application/octet-stream")


async def _follow(
    path: Path, start: int, name: str, runner: JobRunner, *, follow: bool
) -> AsyncIterator[bytes]:
    """Yield events from a byte on, until the job is over, the server stops, or the client left."""
    at, told = start, time.monotonic()
    yield b": events of a job\n\n"
    while True:
        ticket = runner.tickets.get(name)
        if ticket is None:
            return
        sent = 0
        for end, event in read_events(path, at):
            yield _event(event["event"], event, end)
            at, sent = end, sent + 1
            if sent == _AT_ONCE:
                break
        if sent:
            told = time.monotonic()
            await asyncio.sleep(0)
            continue
        if ticket.is_over:
            yield _event("end", {"event": "end", "state": ticket.state}, at)
            return
        if not follow or runner.is_stopping:
            return
        if time.monotonic() - told > _ALIVE_S:
            yield b": alive\n\n"
            told = time.monotonic()
        await asyncio.sleep(_LOOK_S)


def _event(kind: str, fields: Mapping[str, Any], end: int) -> bytes:
    data = json.dumps(fields, ensure_ascii=False)
    return f"id: {end}\nevent: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
