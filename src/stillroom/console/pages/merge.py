"""Merge: which parents, where they conflict, and what the held-out loss is between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillroom.console.desk import Desk
from stillroom.errors import DataError
from stillroom.serve.blending import MOST_PARENTS, inspect_models, measure_path
from stillroom.serve.limits import Limits
from stillroom.serve.slots import IsStopped, Slots
from stillroom.serve.views.models import list_models
from stillroom.serve.views.records import list_sets

__all__ = ["routes"]

_POINTS = (3, 5, 11)


def routes(desk: Desk) -> list[Route]:
    """Return the routes of the page."""
    slots = Slots(Limits(timeout_s=900.0))

    async def page(request: Request) -> Response:
        models, _ = await desk.work(list_models, desk.root)
        return desk.page(
            request,
            "merge.html",
            title="Merge",
            models=[one for one in models if not one.is_reference],
            sets=await desk.work(list_sets, desk.sources),
            most=MOST_PARENTS,
        )

    async def run(request: Request, work: Any) -> Response:
        told = await desk.collect(slots, work, request)
        return JSONResponse(told[0] if told else {})

    async def conflict(request: Request) -> Response:
        query = request.query_params
        density = _number(query.get("density", "0.2"), 0.01, 1.0)
        inspect = partial(
            inspect_models, desk.root, query.get("base", ""), query.getlist("m"), density
        )
        return await run(request, inspect)

    async def path(request: Request) -> Response:
        query = request.query_params
        names = query.getlist("m")
        if len(names) != 2:
            raise DataError(
                f"a line has two ends, not {len(names)}",
                code="console.parents",
                expected="two models",
                next="choose two on the page Merge",
            )
        points = int(_number(query.get("points", "11"), 3, 11))

        def work(is_stopped: IsStopped) -> Iterator[dict[str, Any]]:
            return measure_path(
                desk.sources,
                (names[0], names[1]),
                query.get("records", ""),
                count=int(_number(query.get("n", "12"), 1, 64)),
                points=min(_POINTS, key=lambda one: abs(one - points)),
                is_stopped=is_stopped,
            )

        return await run(request, work)

    return [
        Route("/merge", page),
        Route("/merge/conflict", conflict, methods=["POST"]),
        Route("/merge/path", path, methods=["POST"]),
    ]


def _number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if low <= value <= high:
        return value
    raise DataError(
        f"{text!r:.40} is out of bounds",
        code="console.settings",
        expected=f"a number from {low:g} to {high:g}",
        next="use the form of the page",
    )
