"""Forensics: a picture or clip is dropped, and what is known of it is said, evidence in order.

The file goes to the API's check, which looks at it in a fenced process; the page draws the answer.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stillroom.console.desk import Desk
from stillroom.serve.looking import Looker

__all__ = ["routes"]


def routes(desk: Desk, looker: Looker) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        return desk.page(
            request,
            "forensics.html",
            title="Forensics",
            detectors=[path.name for path in looker.detectors],
            lists=len(looker.official) + len(looker.trust),
        )

    return [Route("/forensics", page)]
