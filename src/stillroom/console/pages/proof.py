"""Proof page: who signed a run's folders, what differs, what was replayed, and what is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.console.page_context import PageContext
from stillroom.serve.access import RequestLimits
from stillroom.serve.middleware.concurrency import FairQueue
from stillroom.serve.views.lineage import layout_lineage_graph
from stillroom.serve.views.proof import examine_proof

if TYPE_CHECKING:
    from stillroom.provenance.signing import Trust

__all__ = ["proof_routes"]

_NODE_HEIGHT = 62


def proof_routes(context: PageContext, trust: Trust | None) -> list[Route]:
    """Return the routes of the page.

    Args:
        context: What all pages share.
        trust: Whose signatures are trusted; None trusts nobody's.
    """
    limits = RequestLimits()
    line = FairQueue(limits, 1, most_waiting=limits.checks)

    async def page(request: Request) -> Response:
        found = await context.found()
        rows = [row for row in found if row.digest]
        runs = [row for row in rows if row.details.get("steps")] or rows
        name = request.query_params.get("at") or (runs[0].name if runs else "")
        if not name:
            return context.page(request, "proof.html", title="Proof", rows=rows, at="", proof=None)
        async with line.turn(request):
            proof = await context.run_in_thread(examine_proof, context.root, name, trust)
        graph = await context.run_in_thread(
            layout_lineage_graph, context.root, [proof.name], node_height=_NODE_HEIGHT
        )
        return context.page(
            request,
            "proof.html",
            title="Proof",
            rows=rows,
            at=proof.name,
            proof=proof,
            graph=graph,
            given={one.name: one.digest for one in proof.inputs if one.role != "document"},
            states={folder.name: folder for folder in proof.folders},
            has_trust=trust is not None,
        )

    return [Route("/proof", page)]
