"""Registration of routes: each states the scope that an API key needs, where it is defined.

A module of ``routes`` has a function ``add_routes(table, server)``, which adds its handlers to the
table. ``AuthMiddleware`` asks the table what a request requires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.routing import Match
from starlette.types import Scope

from stillroom.provenance.signing import Trust
from stillroom.serve.access import KeyScope, RequestLimits

if TYPE_CHECKING:
    from stillroom.serve.jobs.runner import JobRunner
    from stillroom.serve.media_check import MediaCheckService
    from stillroom.serve.middleware.metrics import ServerMetrics
    from stillroom.serve.openai.service import ModelService

__all__ = ["RouteRule", "RouteTable", "ServerContext"]

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


class RouteTable:
    """Routes of an app with their rules."""

    def __init__(self, app: FastAPI) -> None:
        """Start with FastAPI's own routes, the OpenAPI description: any key opens them."""
        self.app = app
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
        """Return a decorator that adds a handler.

        Args:
            method: HTTP method.
            path: Path, with parameters in braces.
            scope: Scope that the API key needs.
            reply: Schema of the reply.
            is_streamed: Whether the reply is a stream of events if the client requests one.
            is_upload: Whether the handler reads the body part by part.
            options: Arguments of ``FastAPI.add_api_route``.
        """
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
