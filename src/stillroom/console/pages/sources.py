"""Source: a document with the passage marked that an answer cites."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.console.desk import Desk

__all__ = ["routes"]


def routes(desk: Desk) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        at, passage = query.get("at", ""), query.get("passage", "")
        view = await desk.work(desk.sources.source, at, passage)
        template = "source_part.html" if "part" in query else "source.html"
        return desk.page(request, template, title=view.path, view=view, at=at)

    return [Route("/source", page)]
