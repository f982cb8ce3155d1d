"""The OpenAPI description of what is served: FastAPI's own, made true where it guesses.

What is refused is 400 and never FastAPI's 422, every refusal has the one shape, and streams are
told beside whole replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from stillroom import __version__
from stillroom.serve.answers import ErrorReply

__all__ = ["EVENTS", "STREAMED", "add_description"]

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {}}}}
}
"""A reply that may be a stream of events, where the client asks for it."""

EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "events as they come",
        "content": {"text/event-stream": {"schema": {}}},
    },
    204: {"description": "the job is over and the client has all its events"},
}
_REFUSALS = ("4XX", "5XX")


def add_description(app: FastAPI, names: Sequence[str] = ()) -> None:
    """Serve the description at ``/openapi.json``.

    Args:
        app: With all its routes.
        names: What clients may ask for as ``model``.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, names)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's own way to do it


def _describe(app: FastAPI, names: Sequence[str]) -> dict[str, Any]:
    found = get_openapi(
        title="Stillroom",
        version=__version__,
        summary="OpenAI's endpoints over your own artifacts, and jobs.",
        routes=app.routes,
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    refusal = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(refusal.pop("$defs", {}))
    schemas["ErrorReply"] = refusal
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        if names and schema.get("title", "").endswith("Request"):
            schema["properties"]["model"]["enum"] = list(names)
    told = {
        "description": "refused",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
    }
    for verbs in found["paths"].values():
        for verb in verbs.values():
            verb["responses"].pop("422", None)
            for status in _REFUSALS:
                verb["responses"].setdefault(status, told)
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    found["security"] = [{"key": []}, {}]
    return found
