"""Job pages: recipe form, estimate, and progress of a job.

Forms are built from the recipes' schemas; jobs are created and followed through the jobs API.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stillroom.console.page_context import PageContext
from stillroom.errors import DataError, RecipeError
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.jobs.store import JobRecord
from stillroom.serve.views.folder import list_askable
from stillroom.serve.views.forms import describe_form, list_forms

__all__ = ["job_routes"]

_MAX_JOBS = 200
_MAX_VALUE_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class _JobRow:
    record: JobRecord
    state: str
    can_answer: bool
    position: int | None


def job_routes(context: PageContext, runner: JobRunner | None) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        if runner is None:
            return context.page(request, "make_none.html", title="Make")
        records = list(reversed(list(runner.jobs)))[:_MAX_JOBS]
        rows = [_build_row(record, runner, askable=frozenset()) for record in records]
        forms = await context.run_in_thread(list_forms)
        return context.page(request, "make.html", title="Make", forms=forms, rows=rows)

    async def new(request: Request) -> Response:
        if runner is None:
            return RedirectResponse("/make", 303)
        kind = request.query_params.get("kind", "")
        known = {item.name: item for item in await context.run_in_thread(list_forms)}
        if kind not in known:
            raise RecipeError(
                f"there is no kind {kind!r:.80}",
                code="recipe.unknown-kind",
                expected=f"one of: {', '.join(known)}",
                next="choose one on the page Make",
            )
        settings, commented = await context.run_in_thread(describe_form, kind)
        names = [item.name for item in await context.found() if item.name != "."]
        return context.page(
            request,
            "make_new.html",
            title=f"Make: {kind}",
            kind=known[kind],
            settings=settings,
            commented=request.query_params.get("recipe", "")[:_MAX_VALUE_CHARS] or commented,
            is_written="recipe" in request.query_params,
            places=[*await context.run_in_thread(_list_folders, context), *names],
        )

    async def job(request: Request) -> Response:
        record = runner.jobs.get(request.path_params["name"]) if runner is not None else None
        if runner is None or record is None:
            raise DataError(
                f"there is no job {request.path_params['name']!r:.80}",
                code="data.missing",
                expected="a job of this folder",
                next="see the page Make",
            )
        askable = frozenset(artifact.name for artifact in list_askable(await context.found()))
        template = "job_head.html" if "part" in request.query_params else "job.html"
        return context.page(
            request,
            template,
            title=record.label or record.kind,
            row=_build_row(record, runner, askable),
            recipe=runner.jobs.recipe(record.id),
        )

    return [
        Route("/make", page),
        Route("/make/new", new),
        Route("/make/jobs/{name}", job),
    ]


def _build_row(record: JobRecord, runner: JobRunner, askable: frozenset[str]) -> _JobRow:
    state = "cancelling" if record.is_cancelling else record.state
    return _JobRow(record, state, f"jobs/{record.id}" in askable, runner.position(record))


def _list_folders(context: PageContext) -> list[str]:
    """Return the top-level folders, which may contain documents."""
    return sorted(
        folder.name
        for folder in context.root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.name != "jobs"
    )
