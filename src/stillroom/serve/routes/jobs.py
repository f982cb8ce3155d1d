"""``/v1/jobs``: submission, list, status, cancellation, resumption and removal of jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request
from fastapi.responses import Response
from pydantic import Field

from stillroom.serve.jobs.runner import (
    JobRunner,
    RecipeSubmission,
    find_job,
    find_tenant,
    read_submission,
)
from stillroom.serve.jobs.store import EVENTS_FILE, JobRecord, JobState, read_events
from stillroom.serve.routing import ProblemDetail, RouteTable, ServerContext, StrictModel

__all__ = ["JobList", "JobStatus", "JobSubmission", "add_routes"]

_YAML_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/yaml": {"schema": {}}}}
}
_PAGE_SIZE = 100
_TAIL_BYTES = 1 << 15


class JobSubmission(RecipeSubmission):
    """Body of POST /v1/jobs."""

    name: str = Field("", max_length=200, description="name that the client gives the job")


class _JobError(StrictModel):
    code: str
    message: str
    problems: list[ProblemDetail]


class _JobArtifact(StrictModel):
    kind: str
    digest: str
    path: str


class JobStatus(StrictModel):
    """Current status of a job."""

    id: str
    object: Literal["job"]
    kind: str
    name: str
    state: Literal["queued", "running", "cancelling", "cancelled", "failed", "finished"]
    position: int | None
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    takes: int
    progress: dict[str, Any] | None
    can_cancel: bool
    can_resume: bool
    error: _JobError | None
    artifact: _JobArtifact | None


class JobList(StrictModel):
    """List of jobs, newest first."""

    object: Literal["list"]
    data: list[JobStatus]
    has_more: bool


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes, if the server runs jobs."""
    if server.jobs is not None:
        _add_collection_routes(table, server.jobs)
        _add_item_routes(table, server.jobs)


def _add_collection_routes(table: RouteTable, runner: JobRunner) -> None:
    @table.add(
        "POST",
        "/v1/jobs",
        "jobs:write",
        status_code=201,
        responses={201: {"model": JobStatus}, 200: {"model": JobStatus}},
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

    @table.add("GET", "/v1/jobs", "jobs:read", reply=JobList)
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


def _add_item_routes(table: RouteTable, runner: JobRunner) -> None:
    @table.add("GET", "/v1/jobs/{job_id}", "jobs:read", reply=JobStatus)
    async def job(job_id: str, request: Request) -> dict[str, Any]:
        """Return the current status of a job."""
        return _describe_job(find_job(job_id, request, runner), runner)

    @table.add("DELETE", "/v1/jobs/{job_id}", "jobs:write", status_code=204)
    async def remove(job_id: str, request: Request) -> Response:
        """Delete a finished job and its folder."""
        record = find_job(job_id, request, runner)
        await runner.remove(record.id)
        return Response(status_code=204)

    @table.add("POST", "/v1/jobs/{job_id}/cancel", "jobs:write", reply=JobStatus)
    async def cancel(job_id: str, request: Request) -> dict[str, Any]:
        """Stop a job at its next safe point; a second request stops it at once."""
        return _describe_job(runner.cancel(find_job(job_id, request, runner).id), runner)

    @table.add("POST", "/v1/jobs/{job_id}/resume", "jobs:write", reply=JobStatus)
    async def resume(job_id: str, request: Request) -> dict[str, Any]:
        """Queue a failed or cancelled job again."""
        return _describe_job(runner.resume(find_job(job_id, request, runner).id), runner)

    @table.add(
        "GET",
        "/v1/jobs/{job_id}/recipe",
        "jobs:read",
        responses=_YAML_RESPONSES,
        response_class=Response,
    )
    async def recipe(job_id: str, request: Request) -> Response:
        """Return the resolved recipe of a job as YAML."""
        record = find_job(job_id, request, runner)
        return Response(runner.jobs.recipe(record.id), media_type="application/yaml")


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
