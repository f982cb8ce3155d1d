"""Proof of a run of the workspace: who signed it, what differs, what was replayed, what is open."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query, Request

from stillroom.errors import DataError
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.submission import find_tenant
from stillroom.serve.middleware.concurrency import FairQueue
from stillroom.serve.openapi import StrictModel
from stillroom.serve.routing import RouteTable, ServerContext
from stillroom.serve.views.proof import ProofFolder, ProofInput, examine_proof

__all__ = ["RunProofReply", "add_routes"]


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
    """Add the route, if the server runs jobs."""
    if (runner := server.jobs) is None:
        return
    line = FairQueue(server.limits, 1, most_waiting=server.limits.checks)

    @table.add("GET", "/v1/proof", "jobs:read", reply=RunProofReply)
    async def proof(
        request: Request, path: Annotated[str, Query(max_length=1024)]
    ) -> dict[str, Any]:
        """Verify a run or another artifact of the workspace; every file of it is read."""
        root = runner.workspace.root(find_tenant(request, runner))
        async with line.turn(request):
            try:
                found = await asyncio.to_thread(examine_proof, root.folder, path, server.trust)
            except DataError as error:
                raise ApiError(404, error.problems[0].what, code="unknown_path") from error
        return found.to_json()
