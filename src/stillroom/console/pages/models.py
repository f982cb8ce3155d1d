"""Model pages: checkpoint comparison, merge preview, diffusion sampling and media forensics.

Media files are sent to the API's check, which runs in a sandboxed process; the page displays the
result.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillroom.console.page_context import PageContext
from stillroom.errors import DataError
from stillroom.serve.access import RequestLimits
from stillroom.serve.media_check import MediaCheckService
from stillroom.serve.middleware.concurrency import IsStopped, WorkerSlots
from stillroom.serve.playground import (
    MAX_PARENTS,
    DiffusionStreamRequest,
    DiffusionStreamService,
    inspect_models,
    measure_loss_path,
)
from stillroom.serve.views.forms import list_method_options
from stillroom.serve.views.lineage import layout_lineage_graph
from stillroom.serve.views.models import ModelSummary, list_models
from stillroom.serve.views.records import list_record_sets

__all__ = [
    "diffusion_routes",
    "forensics_routes",
    "merge_routes",
    "model_routes",
]


def model_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        models, figures = await context.run_in_thread(list_models, context.root)
        shown_metrics = {
            key: description
            for key, description in figures.items()
            if any(key in m.figures for m in models)
        }
        return context.page(
            request, "models.html", title="Models", models=models, figures=shown_metrics
        )

    async def compare(request: Request) -> Response:
        models, figures = await context.run_in_thread(list_models, context.root)
        selected = [_find_model(models, name) for name in request.query_params.getlist("m")[:2]]
        if not selected:
            raise DataError(
                "no model is selected",
                code="data.missing",
                expected="one or two of the folder's models",
                next="select them on the page Models",
            )
        graph = await context.run_in_thread(
            layout_lineage_graph,
            context.root,
            [model.name for model in selected if not model.is_reference],
        )
        shown_metrics = {
            key: description
            for key, description in figures.items()
            if any(key in m.figures for m in selected)
        }
        return context.page(
            request,
            "models_compare.html",
            title=" vs. ".join(model.name for model in selected),
            chosen=selected,
            models=models,
            figures=shown_metrics,
            graph=graph,
        )

    async def open_model(request: Request) -> Response:
        served = await context.run_in_thread(
            context.models.open, request.query_params.get("at", "")
        )
        return JSONResponse({"model": served.model_name})

    return [
        Route("/models", page),
        Route("/models/compare", compare),
        Route("/models/open", open_model, methods=["POST"]),
    ]


def _find_model(models: list[ModelSummary], name: str) -> ModelSummary:
    model = next((candidate for candidate in models if candidate.name == name), None)
    if model is None:
        raise DataError(
            f"{name!r:.200} is not a model of this folder",
            code="data.missing",
            expected="one of those on the page Models",
            next="choose one there",
        )
    return model


_PATH_POINTS = (3, 5, 11)


def merge_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""
    slots = WorkerSlots(RequestLimits(timeout_s=900.0))

    async def page(request: Request) -> Response:
        models, _ = await context.run_in_thread(list_models, context.root)
        return context.page(
            request,
            "merge.html",
            title="Merge",
            models=[m for m in models if m.is_language_model and not m.is_reference],
            sets=await context.run_in_thread(list_record_sets, context.sources),
            most=MAX_PARENTS,
        )

    async def run(request: Request, work: Any) -> Response:
        results = await context.collect(slots, work, request)
        return JSONResponse(results[0] if results else {})

    async def conflict(request: Request) -> Response:
        query = request.query_params
        density = _parse_number(query.get("density", "0.2"), 0.01, 1.0)
        inspect = partial(
            inspect_models, context.root, query.get("base", ""), query.getlist("m"), density
        )
        return await run(request, inspect)

    async def path(request: Request) -> Response:
        query = request.query_params
        names = query.getlist("m")
        if len(names) != 2:
            raise DataError(
                f"a line needs two models, not {len(names)}",
                code="console.parents",
                expected="two models",
                next="select two on the page Merge",
            )
        points = int(_parse_number(query.get("points", "11"), 3, 11))

        def work(is_stopped: IsStopped) -> Iterator[dict[str, Any]]:
            return measure_loss_path(
                context.sources,
                (names[0], names[1]),
                query.get("records", ""),
                count=int(_parse_number(query.get("n", "12"), 1, 64)),
                points=min(_PATH_POINTS, key=lambda count: abs(count - points)),
                is_stopped=is_stopped,
            )

        return await run(request, work)

    return [
        Route("/merge", page),
        Route("/merge/conflict", conflict, methods=["POST"]),
        Route("/merge/path", path, methods=["POST"]),
    ]


def _parse_number(text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if low <= value <= high:
        return value
    raise DataError(
        f"{text!r:.40} is out of range",
        code="console.settings",
        expected=f"a number from {low:g} to {high:g}",
        next="use the form of the page",
    )


def diffusion_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""
    service, slots = DiffusionStreamService(context.root), WorkerSlots(RequestLimits())

    async def page(request: Request) -> Response:
        models, _ = await context.run_in_thread(list_models, context.root)
        return context.page(
            request,
            "diffusion.html",
            title="Diffusion",
            models=[model for model in models if model.is_diffusion],
            orders=list_method_options("diffusion.sampling.unmask_orders"),
            commits=list_method_options("diffusion.sampling.unmask_rules"),
            remaskings=list_method_options("diffusion.sampling.remaskings"),
        )

    async def write(request: Request) -> Response:
        name = request.query_params.get("at", "")
        try:
            body = DiffusionStreamRequest.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}",
                code="console.settings",
                expected="values of the form",
                next="reload the page",
            ) from error

        def work(is_stopped: IsStopped) -> Iterator[dict[str, Any]]:
            return service.write(name, body, is_stopped)

        results = await context.collect(slots, work, request)
        return JSONResponse({"steps": results[:-1], "result": results[-1] if results else {}})

    return [Route("/diffusion", page), Route("/diffusion/write", write, methods=["POST"])]


def forensics_routes(context: PageContext, media_check: MediaCheckService) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        return context.page(
            request,
            "forensics.html",
            title="Forensics",
            detectors=[path.name for path in media_check.detectors],
            lists=len(media_check.official) + len(media_check.trust),
        )

    return [Route("/forensics", page)]
