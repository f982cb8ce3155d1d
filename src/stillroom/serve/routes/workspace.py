"""Workspace: the files and artifacts that recipes can name, and the proof of a run among them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query, Request

from stillroom.errors import DataError
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.runner import find_tenant
from stillroom.serve.middleware.concurrency import FairQueue
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel
from stillroom.serve.views.folder import read_kind
from stillroom.serve.views.proof import ProofFolder, ProofInput, examine_proof
from stillroom.serve.workspace import TenantRoot, make_path_redactor

__all__ = ["RunProofReply", "WorkspaceList", "add_routes"]


class _WorkspaceEntry(StrictModel):
    path: str
    size_bytes: int | None
    kind: str | None = None


class WorkspaceList(StrictModel):
    """Entries of a folder that recipes can name."""

    object: Literal["list"]
    path: str
    data: list[_WorkspaceEntry]
    has_more: bool


class RunProofReply(StrictModel):
    """Result of verifying a run."""

    object: Literal["proof"]
    name: str
    state: Literal["trusted", "unknown-signer", "unsigned", "other-signer", "invalid", "changed"]
    verdict: str
    replayed: str
    folders: list[ProofFolder]
    inputs: list[ProofInput]
    open_ends: list[str]
    is_whole: bool
    is_guarded: bool
    seconds: float


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes, if the server runs jobs."""
    if (runner := server.jobs) is None:
        return
    queue = FairQueue(server.limits, 1, most_waiting=server.limits.checks)

    @table.add("GET", "/v1/workspace", "jobs:read", reply=WorkspaceList)
    async def workspace(
        request: Request, path: Annotated[str, Query(max_length=1024)] = ""
    ) -> dict[str, Any]:
        """List a folder of the names that recipes can use."""
        root = runner.workspace.root(find_tenant(request, runner))
        return await asyncio.to_thread(_list_folder, root, path)

    @table.add("GET", "/v1/proof", "jobs:read", reply=RunProofReply)
    async def proof(
        request: Request, path: Annotated[str, Query(max_length=1024)]
    ) -> dict[str, Any]:
        """Verify a run or another artifact of the workspace; every file of it is read."""
        root = runner.workspace.root(find_tenant(request, runner))
        async with queue.turn(request):
            try:
                found = await asyncio.to_thread(examine_proof, root.folder, path, server.trust)
            except DataError as error:
                hide = make_path_redactor({root.folder: ""})
                raise ApiError(404, hide(error.problems[0].what), code="unknown_path") from error
        return found.to_json()


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
