"""Models: checkpoints with what made them, two side by side, and a chat with both at once."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillroom.console.desk import Desk
from stillroom.errors import DataError
from stillroom.serve.views.graph import draw_graph
from stillroom.serve.views.models import Model, list_models

__all__ = ["routes"]


def routes(desk: Desk) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        models, figures = await desk.work(list_models, desk.root)
        told = {key: said for key, said in figures.items() if any(key in m.figures for m in models)}
        return desk.page(request, "models.html", title="Models", models=models, figures=told)

    async def compare(request: Request) -> Response:
        models, figures = await desk.work(list_models, desk.root)
        chosen = [_find(models, name) for name in request.query_params.getlist("m")[:2]]
        if not chosen:
            raise DataError(
                "no model was chosen",
                code="data.missing",
                expected="one or two of the folder's models",
                next="choose them on the page Models",
            )
        graph = await desk.work(
            draw_graph, desk.root, [one.name for one in chosen if not one.is_reference]
        )
        told = {key: said for key, said in figures.items() if any(key in m.figures for m in chosen)}
        return desk.page(
            request,
            "models_compare.html",
            title=" beside ".join(one.name for one in chosen),
            chosen=chosen,
            models=models,
            figures=told,
            graph=graph,
        )

    async def open_model(request: Request) -> Response:
        served = await desk.work(desk.shelf.open, request.query_params.get("at", ""))
        return JSONResponse({"model": served.bare_name})

    return [
        Route("/models", page),
        Route("/models/compare", compare),
        Route("/models/open", open_model, methods=["POST"]),
    ]


def _find(models: list[Model], name: str) -> Model:
    found = next((one for one in models if one.name == name), None)
    if found is None:
        raise DataError(
            f"{name!r:.200} is no model of this folder",
            code="data.missing",
            expected="one of those on the page Models",
            next="open that page",
        )
    return found
