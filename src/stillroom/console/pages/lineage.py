"""Lineage: any artifact of the folder back to the bytes of documents."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.console.desk import Desk
from stillroom.serve.views.found import read_found
from stillroom.serve.views.lineage import trace

__all__ = ["routes"]


def routes(desk: Desk) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        if "at" not in query:
            found = await desk.found()
            kind = query.get("kind", "")
            kinds = sorted({one.kind for one in found})
            rows = [one for one in found if kind in {"", one.kind}]
            return desk.page(
                request, "lineage.html", title="Lineage", rows=rows, kinds=kinds, kind=kind
            )
        at, record = query["at"], query.get("record", "").strip()
        tree = await desk.work(trace, desk.root, at, record=record)
        found_one = await desk.work(read_found, desk.root, at)
        title = f"Lineage of {record or (at if at != '.' else desk.root.name)}"
        return desk.page(
            request, "lineage_of.html", title=title, tree=tree, at=at, record=record, one=found_one
        )

    return [Route("/lineage", page)]
