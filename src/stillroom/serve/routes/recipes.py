"""Kinds of recipes with schemas and commented examples, and the check of a recipe."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from pydantic import ConfigDict, Field

from stillroom.errors import RecipeError
from stillroom.recipes import dump_recipe, find_recipe_class, list_kinds, render_template
from stillroom.registry.catalog import list_kinds as summarize_kinds
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.runner import RecipeSubmission, find_tenant, read_submission
from stillroom.serve.middleware.concurrency import FairQueue, run_while_connected
from stillroom.serve.routing import (
    ExtensibleModel,
    ProblemDetail,
    RouteTable,
    ServerContext,
    StrictModel,
)

__all__ = ["RecipeCheck", "RecipeKind", "RecipeKindList", "RecipeKindSummary", "add_routes"]


class RecipeKindSummary(StrictModel):
    """Kind of recipe."""

    kind: str
    summary: str


class RecipeKindList(StrictModel):
    """List of all kinds."""

    object: Literal["list"]
    data: list[RecipeKindSummary]


class RecipeKind(StrictModel):
    """Kind of recipe with its JSON Schema and a commented example."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    object: Literal["recipe.kind"]
    kind: str
    summary: str
    schema_: dict[str, Any] = Field(alias="schema")
    commented: str


class RecipeCheck(ExtensibleModel):
    """Validity of a recipe, its resource estimate, and whether that fits."""

    object: Literal["recipe.check"]
    valid: bool
    fits: bool | None
    problems: list[ProblemDetail]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes, if the server runs jobs."""
    if (runner := server.jobs) is None:
        return
    queue = FairQueue(server.limits, 1, most_waiting=server.limits.checks)

    @table.add("GET", "/v1/recipes", "jobs:read", reply=RecipeKindList)
    async def kinds() -> dict[str, Any]:
        """List the kinds of recipes."""
        rows = [{"kind": kind, "summary": summary} for kind, summary in summarize_kinds().items()]
        return {"object": "list", "data": rows}

    @table.add("GET", "/v1/recipes/{kind}", "jobs:read", reply=RecipeKind)
    async def kind(kind: str, method: Annotated[str, Query(max_length=80)] = "") -> dict[str, Any]:
        """Describe a kind: the JSON Schema of its recipes, and a commented example."""
        if kind not in list_kinds():
            raise ApiError(404, f"there is no kind {kind[:40]!r}", code="unknown_kind")
        return await asyncio.to_thread(_describe_kind, kind, method)

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
        async with queue.turn(request):
            estimate = await run_while_connected(request, runner.check(text, tenant))
        is_checked = estimate.pop("state") == "checked"
        fits = not estimate["problems"] if is_checked else None
        head = {"object": "recipe.check", "valid": True, "kind": recipe.kind, "fits": fits}
        return {**head, "recipe": text, **estimate}


def _describe_kind(kind: str, method: str) -> dict[str, Any]:
    try:
        commented = render_template(kind, method or None)
    except RecipeError as error:
        raise ApiError(404, error.problems[0].what, code="unknown_method") from error
    schema = find_recipe_class(kind).model_json_schema(by_alias=True)
    summary = summarize_kinds()[kind]
    return {"object": "recipe.kind", "kind": kind, "summary": summary, "schema": schema,
            "commented": commented}  # fmt: skip
