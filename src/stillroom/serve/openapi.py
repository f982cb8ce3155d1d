"""Parts that response schemas share, and corrections of the published OpenAPI description.

Response schemas describe replies and do not build them: tests compare the server's replies with
them, so that a field missing on one side is found.

Refusals have status 400, never FastAPI's 422, and one format; streams are described besides whole
replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from stillroom import __version__

__all__ = [
    "ErrorReply",
    "ExtensibleModel",
    "ProblemDetail",
    "StrictModel",
    "TokenUsage",
    "add_openapi",
]


class StrictModel(BaseModel):
    """Model of a complete reply; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ExtensibleModel(BaseModel):
    """Model of the common fields of a reply; some kinds add more."""

    model_config = ConfigDict(extra="allow")


class ProblemDetail(StrictModel):
    """One problem of a request."""

    what: str
    code: str
    where: str
    expected: str
    next: str


class _ErrorBody(StrictModel):
    message: str
    type: str
    param: str | None
    code: str
    problems: list[ProblemDetail] = Field(
        default_factory=list,
        description="problems of a recipe, and of requests that refer to an earlier answer",
    )


class ErrorReply(StrictModel):
    """Body of every refusal."""

    error: _ErrorBody


class _TokenUsage(ExtensibleModel):
    prompt_tokens: int
    total_tokens: int


TokenUsage = _TokenUsage  # the class has the name of its schema in the description
_ERROR_STATUSES = ("4XX", "5XX")


def add_openapi(app: FastAPI, names: Sequence[str] = ()) -> None:
    """Serve the OpenAPI description at ``/openapi.json``.

    Args:
        app: Application with all its routes.
        names: Accepted values of ``model``.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build_openapi(app, names)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's own way to do it


def _build_openapi(app: FastAPI, names: Sequence[str]) -> dict[str, Any]:
    description = get_openapi(
        title="Stillroom",
        version=__version__,
        summary="OpenAI-compatible endpoints over your own artifacts, and jobs.",
        routes=app.routes,
    )
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    refusal = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(refusal.pop("$defs", {}))
    schemas["ErrorReply"] = refusal
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        if names and schema.get("title", "").endswith("Request"):
            schema["properties"]["model"]["enum"] = list(names)
    refusals = {
        "description": "refused",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorReply"}}},
    }
    for verbs in description["paths"].values():
        for verb in verbs.values():
            verb["responses"].pop("422", None)
            for status in _ERROR_STATUSES:
                verb["responses"].setdefault(status, refusals)
    description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    description["security"] = [{"key": []}, {}]
    return description
