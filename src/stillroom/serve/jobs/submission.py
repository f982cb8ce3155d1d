"""Recipes as clients send them, and the tenant and the job that a request refers to."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from stillroom.recipes import Recipe
from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.recipe_policy import dump_client_recipe, validate_client_recipe
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.jobs.store import JobRecord
from stillroom.serve.middleware.auth import ACCESS_KEY

__all__ = ["RecipeSubmission", "find_job", "find_tenant", "read_submission"]


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


def find_job(name: str, request: Request, runner: JobRunner) -> JobRecord:
    """Return a job of the tenant; the job of another tenant is reported as unknown.

    Raises:
        ApiError: If the tenant has no such job.
    """
    record = runner.jobs.get(name)
    if record is None or record.tenant != find_tenant(request, runner):
        raise ApiError(404, f"there is no job {name[:80]!r}", code="unknown_job")
    return record
