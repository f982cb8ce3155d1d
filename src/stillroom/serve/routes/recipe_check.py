"""Check of a recipe: its validity, and an estimate of memory, disk and time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fastapi import Request

from stillroom.errors import RecipeError
from stillroom.recipes import dump_recipe
from stillroom.serve.jobs.submission import RecipeSubmission, find_tenant, read_submission
from stillroom.serve.middleware.concurrency import FairQueue, run_while_connected
from stillroom.serve.openapi import ExtensibleModel, ProblemDetail
from stillroom.serve.routing import RouteTable, ServerContext

__all__ = ["RecipeCheck", "add_routes"]


class RecipeCheck(ExtensibleModel):
    """Validity of a recipe, its resource estimate, and whether that fits."""

    object: Literal["recipe.check"]
    valid: bool
    fits: bool | None
    problems: list[ProblemDetail]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route, if the server runs jobs."""
    if (runner := server.jobs) is None:
        return
    line = FairQueue(server.limits, 1, most_waiting=server.limits.checks)

    @table.add("POST", "/v1/recipes/check", "jobs:read", reply=RecipeCheck)
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
