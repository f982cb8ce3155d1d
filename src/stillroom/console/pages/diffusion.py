"""Diffusion: a text unmasked step by step, scrubbed, and held beside others by their readings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillroom.console.desk import Desk
from stillroom.errors import DataError
from stillroom.serve.limits import Limits
from stillroom.serve.slots import IsStopped, Slots
from stillroom.serve.unmasking import Unmasker, Unmasking
from stillroom.serve.views.methods import list_offers
from stillroom.serve.views.models import list_models

__all__ = ["routes"]


def routes(desk: Desk) -> list[Route]:
    """Return the routes of the page."""
    unmasker, slots = Unmasker(desk.root), Slots(Limits())

    async def page(request: Request) -> Response:
        models, _ = await desk.work(list_models, desk.root)
        return desk.page(
            request,
            "diffusion.html",
            title="Diffusion",
            models=[one for one in models if one.is_diffusion],
            orders=list_offers("diffusion.orders"),
            commits=list_offers("diffusion.commits"),
            remaskings=list_offers("diffusion.remaskings"),
        )

    async def write(request: Request) -> Response:
        at = request.query_params.get("at", "")
        try:
            wanted = Unmasking.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}",
                code="console.settings",
                expected="what the form of the page asks for",
                next="open the page again",
            ) from error

        def work(is_stopped: IsStopped) -> Iterator[dict[str, Any]]:
            return unmasker.write(at, wanted, is_stopped)

        told = await desk.collect(slots, work, request)
        return JSONResponse({"steps": told[:-1], "result": told[-1] if told else {}})

    return [Route("/diffusion", page), Route("/diffusion/write", write, methods=["POST"])]
