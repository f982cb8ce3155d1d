"""Route registration (endpoints) and OpenAPI schema; each route states the scope that a key needs.

A module of ``routes`` has a function ``add_routes(table, server)``, which adds its handlers to the
table. ``AuthMiddleware`` asks the table what a request requires.

Response schemas describe replies and do not build them: tests compare the server's replies with
them, so that a field missing on one side is found.

Refusals have status 400, never FastAPI's 422, and one format; streams are described besides whole
replies.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Match
from starlette.types import Scope
from typing_extensions import override

from stillroom import __version__
from stillroom.provenance.digests import build_unique_object, load_json
from stillroom.provenance.signing import Trust
from stillroom.serve.access import KeyScope, RequestLimits

if TYPE_CHECKING:
    from stillroom.serve.jobs.runner import JobRunner
    from stillroom.serve.media_check import MediaCheckService
    from stillroom.serve.middleware.metrics import ServerMetrics
    from stillroom.serve.openai.service import ModelService

__all__ = [
    "ErrorReply",
    "ExtensibleModel",
    "ProblemDetail",
    "RouteRule",
    "RouteTable",
    "ServerContext",
    "StrictModel",
    "TokenUsage",
    "add_openapi",
]


EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What the handlers of one app share; ``jobs`` and ``media_check`` only where served.

    ``trust`` is whose signatures of runs the operator trusts.
    """

    limits: RequestLimits
    counters: ServerMetrics
    models: ModelService
    jobs: JobRunner | None = None
    media_check: MediaCheckService | None = None
    trust: Trust = field(default_factory=Trust)


@dataclass(frozen=True, slots=True)
class RouteRule:
    """Who may use a route, and whether its body is an upload, read part by part.

    ``scope`` is a permission of API keys; ``any`` requires a key of any scope, ``public`` no key.
    """

    scope: KeyScope | Literal["any", "public"]
    is_upload: bool = False


class _JsonRequest(Request):
    """Request whose JSON names each member once: a proxy may have read another one."""

    @override
    async def json(self) -> Any:
        return load_json(await self.body(), object_pairs_hook=build_unique_object)


class _JsonRoute(APIRoute):
    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return read


class RouteTable:
    """Routes of an app with their rules."""

    def __init__(self, app: FastAPI) -> None:
        """Start with FastAPI's own routes, the OpenAPI description: any key opens them."""
        self.app = app
        app.router.route_class = _JsonRoute
        self._rules = {id(route): RouteRule("any") for route in app.routes}

    def add(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        scope: KeyScope | Literal["any", "public"],
        *,
        reply: type[BaseModel] | None = None,
        is_streamed: bool = False,
        is_upload: bool = False,
        **options: Any,
    ) -> Callable[[EndpointT], EndpointT]:
        """Return a decorator that adds a handler."""
        if reply is not None:
            stream: dict[str, Any] = (
                {"content": {"text/event-stream": {"schema": {}}}} if is_streamed else {}
            )
            options["responses"] = {200: {"model": reply, **stream}}

        def register(endpoint: EndpointT) -> EndpointT:
            self.app.add_api_route(path, endpoint, methods=[method], **options)
            self._rules[id(self.app.routes[-1])] = RouteRule(scope, is_upload)
            return endpoint

        return register

    def find(self, request: Scope) -> RouteRule | None:
        """Return the rule of a request's route, or None if no path matches.

        For a method that a path does not support, the rule of the path's first route.

        Raises:
            TypeError: If the route states no scope.
        """
        first = None
        for route in self.app.routes:
            match, _ = route.matches(request)
            if match is Match.NONE:
                continue
            if match is Match.FULL:
                return self._rule_of(route)
            first = first or route
        return None if first is None else self._rule_of(first)

    def check(self) -> None:
        """Refuse routes that were added without a scope.

        Raises:
            TypeError: Naming the first such route.
        """
        for route in self.app.routes:
            self._rule_of(route)

    def _rule_of(self, route: Any) -> RouteRule:
        if id(route) not in self._rules:
            raise TypeError(f"the route {route.path} states no scope; add it with RouteTable.add")
        return self._rules[id(route)]


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
    """Serve the OpenAPI description at ``/openapi.json``."""

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
