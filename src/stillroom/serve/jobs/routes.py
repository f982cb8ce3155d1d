"""Routes of the jobs and recipes API: submission, events, files and recipe checks.

Routes only translate; ``jobs.runner`` runs jobs and checks recipes in a separate process, one at a
time, ``jobs.recipe_policy`` decides what a recipe may refer to, and ``workspace`` maps tenants to
folders.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from stillroom.errors import DataError, RecipeError
from stillroom.jobs import get_working_folder
from stillroom.provenance import ARTIFACT_FILE
from stillroom.recipes import Recipe, dump_recipe, find_recipe_class, list_kinds, render_template
from stillroom.registry.catalog import list_kinds as summarize_kinds
from stillroom.serve import openapi
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.recipe_policy import dump_client_recipe, validate_client_recipe
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.jobs.store import EVENTS_FILE, JobRecord, JobState, read_events
from stillroom.serve.middleware.auth import ACCESS_KEY
from stillroom.serve.middleware.concurrency import FairQueue, run_while_connected
from stillroom.serve.openapi import EVENT_RESPONSES
from stillroom.serve.views.folder import read_kind
from stillroom.serve.workspace import TenantRoot

__all__ = [
    "JobSubmission",
    "RecipeSubmission",
    "add_job_routes",
    "add_recipe_routes",
    "find_tenant",
    "read_submission",
]


class RecipeSubmission(BaseModel):
    """Recipe as sent by a client."""

    model_config = ConfigDict(extra="forbid")

    recipe: str | dict[str, Any] = Field(
        description="YAML text, or the same structure as JSON",
        examples=["kind: merge.weights\nmethod: linear\nmodels: [{model: a}, {model: b}]\n"],
    )
    overrides: list[Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=list,
        max_length=100,
        description="overrides as KEY=VALUE, as in `stillroom run`",
    )


def add_recipe_routes(app: FastAPI, runner: JobRunner, limits: RequestLimits) -> None:
    """Add the routes of recipes and the workspace to an app."""
    line = FairQueue(limits, 1, most_waiting=limits.checks)

    @app.get("/v1/recipes", responses={200: {"model": openapi.RecipeKindList}})
    async def kinds() -> dict[str, Any]:
        """List the kinds of recipes."""
        rows = [{"kind": kind, "summary": summary} for kind, summary in summarize_kinds().items()]
        return {"object": "list", "data": rows}

    @app.get("/v1/recipes/{kind}", responses={200: {"model": openapi.RecipeKind}})
    async def kind(kind: str, method: Annotated[str, Query(max_length=80)] = "") -> dict[str, Any]:
        """Describe a kind: the JSON Schema of its recipes, and a commented example."""
        if kind not in list_kinds():
            raise ApiError(404, f"there is no kind {kind[:40]!r}", code="unknown_kind")
        return await asyncio.to_thread(_describe_kind, kind, method)

    @app.post("/v1/recipes/check", responses={200: {"model": openapi.RecipeCheck}})
    async def check(body: RecipeSubmission, request: Request) -> dict[str, Any]:
        """Validate a recipe and estimate memory, disk and time; nothing is stored."""
        tenant = find_tenant(request, runner)
        try:
            recipe = await read_submission(body, runner, tenant)
        except RecipeError as error:
            problems = [asdict(problem) for problem in error.problems]
            return {"object": "recipe.check", "valid": False, "fits": None, "problems": problems}
        text = dump_recipe(recipe)
        async with line.turn(request):
            estimate = await run_while_connected(request, runner.check(text, tenant))
        is_checked = estimate.pop("state") == "checked"
        fits = not estimate["problems"] if is_checked else None
        head = {"object": "recipe.check", "valid": True, "kind": recipe.kind, "fits": fits}
        return {**head, "recipe": text, **estimate}

    @app.get("/v1/workspace", responses={200: {"model": openapi.WorkspaceList}})
    async def workspace(
        request: Request, path: Annotated[str, Query(max_length=1024)] = ""
    ) -> dict[str, Any]:
        """List a folder of the names that recipes can use."""
        root = runner.workspace.root(find_tenant(request, runner))
        return await asyncio.to_thread(_list_folder, root, path)


async def read_submission(body: RecipeSubmission, runner: JobRunner, tenant: str) -> Recipe:
    """Validate a client's submission and return its recipe.

    Raises:
        RecipeError: If it is invalid or refers to anything outside the workspace.
    """
    root = runner.workspace.root(tenant)
    return await asyncio.to_thread(
        validate_client_recipe,
        dump_client_recipe(body.recipe),
        root,
        runner.policy,
        body.overrides,
    )


def find_tenant(request: Request, runner: JobRunner) -> str:
    """Return the tenant whose jobs a request refers to.

    Raises:
        ApiError: If the folder has tenants and the key names none.
    """
    access = request.scope.get(ACCESS_KEY)
    tenant = access.tenant if access else ""
    if runner.workspace.has_tenants and not tenant:
        raise ApiError(
            403, "the API key names no tenant, and jobs belong to tenants", code="no_tenant"
        )
    return tenant if runner.workspace.has_tenants else ""


def _describe_kind(kind: str, method: str) -> dict[str, Any]:
    try:
        commented = render_template(kind, method or None)
    except RecipeError as error:
        raise ApiError(404, error.problems[0].what, code="unknown_method") from error
    schema = find_recipe_class(kind).model_json_schema(by_alias=True)
    summary = summarize_kinds()[kind]
    return {"object": "recipe.kind", "kind": kind, "summary": summary, "schema": schema,
            "commented": commented}  # fmt: skip


def _list_folder(root: TenantRoot, path: str) -> dict[str, Any]:
    try:
        entries, is_all = root.list(path)
    except DataError as error:
        raise ApiError(404, error.problems[0].what, code="unknown_path") from error
    data = []
    for entry in entries:
        row: dict[str, Any] = {"path": entry.path, "size_bytes": entry.size_bytes}
        if entry.size_bytes is None:
            row["kind"] = read_kind(root.folder / entry.path)
        data.append(row)
    return {"object": "list", "path": path, "data": data, "has_more": not is_all}


_POLL_S = 0.25


_YAML_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/yaml": {"schema": {}}}}
}


_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"*/*": {"schema": {}}}},
    206: {"description": "the requested range"},
    416: {"description": "the range is outside the file"},
}


_KEEPALIVE_S = 15.0


_EVENT_BATCH = 200


_MAX_FILES = 10_000


_PAGE_SIZE = 100


_TAIL_BYTES = 1 << 15


class JobSubmission(RecipeSubmission):
    """Body of POST /v1/jobs."""

    name: str = Field("", max_length=200, description="name that the client gives the job")


def add_job_routes(app: FastAPI, runner: JobRunner, limits: RequestLimits) -> None:
    """Add the routes of jobs to an app."""
    add_recipe_routes(app, runner, limits)
    _add_collection_routes(app, runner)
    _add_item_routes(app, runner)
    _add_event_routes(app, runner, limits)
    _add_result_routes(app, runner)


def _add_collection_routes(app: FastAPI, runner: JobRunner) -> None:
    @app.post(
        "/v1/jobs",
        status_code=201,
        responses={201: {"model": openapi.JobStatus}, 200: {"model": openapi.JobStatus}},
    )
    async def submit(
        body: JobSubmission,
        request: Request,
        response: Response,
        idempotency_key: Annotated[str, Header(max_length=200)] = "",
    ) -> dict[str, Any]:
        """Queue a job; a repeated Idempotency-Key returns the same job."""
        tenant = find_tenant(request, runner)
        recipe = await read_submission(body, runner, tenant)
        record, is_new = runner.submit(recipe, tenant, label=body.name, request_key=idempotency_key)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"/v1/jobs/{record.id}"
        return _describe_job(record, runner)

    @app.get("/v1/jobs", responses={200: {"model": openapi.JobList}})
    async def jobs(
        request: Request,
        state: JobState | None = None,
        limit: Annotated[int, Query(ge=1, le=_PAGE_SIZE)] = _PAGE_SIZE,
        before: Annotated[str, Query(max_length=80)] = "",
    ) -> dict[str, Any]:
        """List the tenant's jobs, newest first; ``before`` an id continues a listing there."""
        tenant = find_tenant(request, runner)
        mine = [
            record
            for record in reversed(list(runner.jobs))
            if record.tenant == tenant
            and (state is None or record.state == state)
            and (not before or record.id < before)
        ]
        data = [_describe_job(record, runner) for record in mine[:limit]]
        return {"object": "list", "data": data, "has_more": len(mine) > limit}


def _add_item_routes(app: FastAPI, runner: JobRunner) -> None:
    @app.get("/v1/jobs/{job_id}", responses={200: {"model": openapi.JobStatus}})
    async def job(job_id: str, request: Request) -> dict[str, Any]:
        """Return the current status of a job."""
        return _describe_job(_find_job(job_id, request, runner), runner)

    @app.delete("/v1/jobs/{job_id}", status_code=204)
    async def remove(job_id: str, request: Request) -> Response:
        """Delete a finished job and its folder."""
        record = _find_job(job_id, request, runner)
        await runner.remove(record.id)
        return Response(status_code=204)

    @app.post("/v1/jobs/{job_id}/cancel", responses={200: {"model": openapi.JobStatus}})
    async def cancel(job_id: str, request: Request) -> dict[str, Any]:
        """Stop a job at its next safe point; a second request stops it at once."""
        return _describe_job(runner.cancel(_find_job(job_id, request, runner).id), runner)

    @app.post("/v1/jobs/{job_id}/resume", responses={200: {"model": openapi.JobStatus}})
    async def resume(job_id: str, request: Request) -> dict[str, Any]:
        """Queue a failed or cancelled job again."""
        return _describe_job(runner.resume(_find_job(job_id, request, runner).id), runner)

    @app.get("/v1/jobs/{job_id}/recipe", responses=_YAML_RESPONSES, response_class=Response)
    async def recipe(job_id: str, request: Request) -> Response:
        """Return the resolved recipe of a job as YAML."""
        record = _find_job(job_id, request, runner)
        return Response(runner.jobs.recipe(record.id), media_type="application/yaml")


def _add_event_routes(app: FastAPI, runner: JobRunner, limits: RequestLimits) -> None:
    followers = asyncio.Semaphore(limits.followers)

    @app.get(
        "/v1/jobs/{job_id}/events", responses=EVENT_RESPONSES, response_class=StreamingResponse
    )
    async def events(
        job_id: str,
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**53)] = 0,
        follow: bool = True,
        last_event_id: Annotated[str, Header(max_length=20)] = "",
    ) -> Response:
        """Stream a job's events (server-sent), starting after the last one that the client has."""
        record = _find_job(job_id, request, runner)
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


def _add_result_routes(app: FastAPI, runner: JobRunner) -> None:
    @app.get("/v1/jobs/{job_id}/files", responses={200: {"model": openapi.JobFileList}})
    async def files(job_id: str, request: Request) -> dict[str, Any]:
        """List the files of a job's artifact, or those written so far."""
        record = _find_job(job_id, request, runner)
        return await asyncio.to_thread(_list_files, record, runner)

    @app.get(
        "/v1/jobs/{job_id}/files/{path:path}", responses=_FILE_RESPONSES, response_class=Response
    )
    async def file(job_id: str, path: str, request: Request) -> Response:
        """Send a file of a finished job; range requests are supported."""
        record = _find_job(job_id, request, runner)
        folder = runner.out_of(record)
        try:
            target = TenantRoot(folder).find(path)
        except DataError:
            target = folder
        if not target.is_file() or target.is_symlink():
            raise ApiError(404, f"the job has no file {path[:200]!r}", code="unknown_file")
        return FileResponse(
            target, media_type=_guess_media_type(target), filename=target.name,
            content_disposition_type="attachment",
        )  # fmt: skip


def _find_job(name: str, request: Request, runner: JobRunner) -> JobRecord:
    """Return a job of the tenant; the job of another tenant is reported as unknown."""
    record = runner.jobs.get(name)
    if record is None or record.tenant != find_tenant(request, runner):
        raise ApiError(404, f"there is no job {name[:80]!r}", code="unknown_job")
    return record


def _describe_job(record: JobRecord, runner: JobRunner) -> dict[str, Any]:
    folder = f"jobs/{record.id}"
    problems = [dict(problem) for problem in record.problems]
    error = {"code": problems[0]["code"], "message": problems[0]["what"]} if problems else None
    return {
        "id": record.id,
        "object": "job",
        "kind": record.kind,
        "name": record.label,
        "state": "cancelling" if record.is_cancelling else record.state,
        "position": runner.position(record),
        "submitted_at": record.submitted,
        "started_at": record.started or None,
        "ended_at": record.ended or None,
        "takes": record.takes,
        "progress": _find_progress(record, runner),
        "can_cancel": not record.is_over,
        "can_resume": record.state in {"failed", "cancelled"},
        "error": {**error, "problems": problems} if error else None,
        "artifact": {**record.artifact, "path": folder} if record.artifact else None,
    }


def _find_progress(record: JobRecord, runner: JobRunner) -> dict[str, Any] | None:
    """Return the last step and count of a running job, read from its events."""
    if record.state != "running":
        return None
    path = runner.jobs.folder_of(record.id) / EVENTS_FILE
    progress: dict[str, Any] = {}
    for _, event in read_events(path, max(path.stat().st_size - _TAIL_BYTES, 0)):
        if event["event"] in {"step", "progress"}:
            progress[event["event"]] = {key: event[key] for key in event if key != "event"}
    return progress or None


def _list_files(record: JobRecord, runner: JobRunner) -> dict[str, Any]:
    folder = runner.out_of(record)
    is_finished = (folder / ARTIFACT_FILE).is_file()
    root = folder if folder.is_dir() else get_working_folder(folder)
    files: list[dict[str, Any]] = []
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        inner = path.relative_to(root)
        if path.is_symlink() or not path.is_file() or any(p.startswith(".") for p in inner.parts):
            continue
        try:
            size = path.stat().st_size
        except OSError:  # the running job moved the file
            continue
        files.append({"path": inner.as_posix(), "size_bytes": size})
        if len(files) > _MAX_FILES:
            break
    has_more = len(files) > _MAX_FILES
    return {
        "object": "list",
        "finished": is_finished,
        "data": files[:_MAX_FILES],
        "has_more": has_more,
    }


def _guess_media_type(path: Path) -> str:
    kinds: Mapping[str, str] = {
        ".json": "application/json",
        ".jsonl": "application/jsonl",
        ".yaml": "application/yaml",
        ".html": "text/html; charset=utf-8",
        ".txt": "text/plain; charset=utf-8",
        ".png": "image/png",
    }
    return kinds.get(path.suffix, "application/octet-stream")


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
