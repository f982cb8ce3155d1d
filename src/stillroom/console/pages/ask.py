"""Question answering page, and the page of a cited source document."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillroom.console.page_context import PageContext
from stillroom.errors import DataError
from stillroom.serve.views.folder import list_askable
from stillroom.serve.views.forms import (
    list_answer_settings,
    list_answering_options,
    list_content_flags,
)

__all__ = [
    "ask_routes",
    "source_routes",
]


def ask_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        runs = list_askable(await context.found())
        name = request.query_params.get("at", "")
        run = next((artifact for artifact in runs if artifact.name == name), None)
        if name and run is None:
            raise DataError(
                f"{name!r:.200} is not a run or an index that answers",
                code="data.missing",
                expected=f"one of: {', '.join(artifact.name for artifact in runs) or 'none yet'}",
                next="choose one on the page Ask",
            )
        return context.page(
            request,
            "ask.html",
            title="Ask",
            runs=runs,
            run=run or (runs[0] if runs else None),
            settings=list_answer_settings(),
            ways=await context.run_in_thread(list_answering_options),
            question=request.query_params.get("q", "")[:4000],
            can_judge=context.can_write,
            flags=list_content_flags(),
        )

    async def open_run(request: Request) -> Response:
        served = await context.run_in_thread(
            context.models.open, request.query_params.get("at", "")
        )
        return JSONResponse({"model": served.name, "bare": served.model_name, "k": served.k})

    async def passages(request: Request) -> Response:
        query = request.query_params
        rows = await context.run_in_thread(
            context.sources.passages, query.get("at", ""), query.getlist("id")
        )
        return JSONResponse({"data": rows})

    return [
        Route("/ask", page),
        Route("/ask/open", open_run, methods=["POST"]),
        Route("/ask/passages", passages),
    ]


def source_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        name, passage = query.get("at", ""), query.get("passage", "")
        view = await context.run_in_thread(
            context.sources.source, name, passage, query.get("quote", "")
        )
        template = "source_part.html" if "part" in query else "source.html"
        return context.page(request, template, title=view.path, view=view, at=name)

    return [Route("/source", page)]
