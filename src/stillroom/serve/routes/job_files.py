"""Files of a job's artifact: the list, and one file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import FileResponse, Response

from stillroom.errors import DataError
from stillroom.jobs import get_working_folder
from stillroom.provenance import ARTIFACT_FILE
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.runner import JobRunner, find_job
from stillroom.serve.jobs.store import JobRecord
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel
from stillroom.serve.workspace import TenantRoot

__all__ = ["JobFileList", "add_routes"]

_FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"*/*": {"schema": {}}}},
    206: {"description": "the requested range"},
    416: {"description": "the range is outside the file"},
}

_MAX_FILES = 10_000


class _JobFile(StrictModel):
    path: str
    size_bytes: int


class JobFileList(StrictModel):
    """Files of a job."""

    object: Literal["list"]
    finished: bool
    data: list[_JobFile]
    has_more: bool


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes, if the server runs jobs."""
    if (runner := server.jobs) is None:
        return

    @table.add("GET", "/v1/jobs/{job_id}/files", "jobs:read", reply=JobFileList)
    async def files(job_id: str, request: Request) -> dict[str, Any]:
        """List the files of a job's artifact, or those written so far."""
        record = find_job(job_id, request, runner)
        return await asyncio.to_thread(_list_files, record, runner)

    @table.add(
        "GET",
        "/v1/jobs/{job_id}/files/{path:path}",
        "jobs:read",
        responses=_FILE_RESPONSES,
        response_class=Response,
    )
    async def file(job_id: str, path: str, request: Request) -> Response:
        """Send a file of a finished job; range requests are supported."""
        record = find_job(job_id, request, runner)
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
