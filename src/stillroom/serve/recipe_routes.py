"""The recipes API: which kinds there are, whether a recipe is sound, and what it may name.

Routes only translate; ``confining`` says what a recipe may reach, ``running`` checks it in a
process of its own, one after the other.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from stillroom.errors import DataError, RecipeError
from stillroom.recipes import Recipe, comment_recipe, dump_recipe, list_kinds, recipe_class
from stillroom.registry.listing import list_kinds as summarize_kinds
from stillroom.serve import answers
from stillroom.serve.confining import read_recipe, write_text
from stillroom.serve.guard import ACCESS
from stillroom.serve.limits import Limits
from stillroom.serve.line import Line, stay
from stillroom.serve.refusals import Refusal
from stillroom.serve.running import JobRunner
from stillroom.serve.views.found import kind_of
from stillroom.serve.workspace import Root

__all__ = ["SentRecipe", "add_recipes", "find_tenant", "read_sent"]


class SentRecipe(BaseModel):
    """A recipe as a client sends it."""

    model_config = ConfigDict(extra="forbid")

    recipe: str | dict[str, Any] = Field(
        description="YAML text, or the same as JSON",
        examples=["kind: merge\nmethod: linear\nmodels: [{checkpoint: a}, {checkpoint: b}]\n"],
    )
    overrides: list[Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=list, max_length=100, description="KEY=VALUE each, as `stillroom run` takes"
    )


def add_recipes(app: FastAPI, runner: JobRunner, limits: Limits) -> None:
    """Add the routes of recipes and the workspace to an app."""
    line = Line(limits, 1, most_waiting=limits.checks)

    @app.get("/v1/recipes", responses={200: {"model": answers.RecipeKinds}})
    async def kinds() -> dict[str, Any]:
        """List the kinds of recipes."""
        rows = [{"kind": kind, "summary": said} for kind, said in summarize_kinds().items()]
        return {"object": "list", "data": rows}

    @app.get("/v1/recipes/{kind}", responses={200: {"model": answers.RecipeKind}})
    async def kind(kind: str, method: Annotated[str, Query(max_length=80)] = "") -> dict[str, Any]:
        """Describe a kind: the JSON Schema of its recipes, and one that is commented."""
        if kind not in list_kinds():
            raise Refusal(404, f"there is no kind {kind[:40]!r}", code="unknown_kind")
        return await asyncio.to_thread(_describe_kind, kind, method)

    @app.post("/v1/recipes/check", responses={200: {"model": answers.RecipeCheck}})
    async def check(body: SentRecipe, request: Request) -> dict[str, Any]:
        """Validate a recipe and estimate memory, disk and time; nothing is kept."""
        tenant = find_tenant(request, runner)
        try:
            recipe = await read_sent(body, runner, tenant)
        except RecipeError as error:
            told = [asdict(one) for one in error.problems]
            return {"object": "recipe.check", "valid": False, "fits": None, "problems": told}
        text = dump_recipe(recipe)
        async with line.turn(request):
            found = await stay(request, runner.check(text, tenant))
        is_checked = found.pop("state") == "checked"
        fits = not found["problems"] if is_checked else None
        head = {"object": "recipe.check", "valid": True, "kind": recipe.kind, "fits": fits}
        return {**head, "recipe": text, **found}

    @app.get("/v1/workspace", responses={200: {"model": answers.WorkspaceList}})
    async def workspace(
        request: Request, path: Annotated[str, Query(max_length=1024)] = ""
    ) -> dict[str, Any]:
        """List a folder of what recipes can name."""
        root = runner.workspace.root(find_tenant(request, runner))
        return await asyncio.to_thread(_list_folder, root, path)


async def read_sent(body: SentRecipe, runner: JobRunner, tenant: str) -> Recipe:
    """Return what a client sent as a recipe that may run here.

    Raises:
        RecipeError: If it is wrong or reaches outside.
    """
    root = runner.workspace.root(tenant)
    return await asyncio.to_thread(
        read_recipe, write_text(body.recipe), root, runner.openings, body.overrides
    )


def find_tenant(request: Request, runner: JobRunner) -> str:
    """Return whose jobs a request is about.

    Raises:
        Refusal: If the folder has tenants and the key names none.
    """
    access = request.scope.get(ACCESS)
    tenant = access.tenant if access else ""
    if runner.workspace.has_tenants and not tenant:
        raise Refusal(403, "the key does not say whose jobs are asked for", code="no_tenant")
    return tenant if runner.workspace.has_tenants else ""


def _describe_kind(kind: str, method: str) -> dict[str, Any]:
    try:
        commented = comment_recipe(kind, method or None)
    except RecipeError as error:
        raise Refusal(404, error.problems[0].what, code="unknown_method") from error
    schema = recipe_class(kind).model_json_schema(by_alias=True)
    said = summarize_kinds()[kind]
    return {"object": "recipe.kind", "kind": kind, "summary": said, "schema": schema,
            "commented": commented}  # fmt: skip


def _list_folder(root: Root, path: str) -> dict[str, Any]:
    try:
        entries, is_all = root.list(path)
    except DataError as error:
        raise Refusal(404, error.problems[0].what, code="unknown_path") from error
    data = []
    for entry in entries:
        row: dict[str, Any] = {"path": entry.path, "size_bytes": entry.size_bytes}
        if entry.size_bytes is None:
            row["kind"] = kind_of(root.folder / entry.path)
        data.append(row)
    return {"object": "list", "path": path, "data": data, "has_more": not is_all}
