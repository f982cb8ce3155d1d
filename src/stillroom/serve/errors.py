"""HTTP errors in the format of the OpenAI API; internal errors are logged, not sent.

A refusal says what the client can change. Anything unforeseen becomes a plain 500 with a number
that stands in the server's log too.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stillroom.errors import (
    BackendError,
    DataError,
    Problem,
    RecipeError,
    ResourceError,
    StillroomError,
)
from stillroom.recipes.schema import clean_path
from stillroom.recipes.yaml_text import format_path

__all__ = [
    "ApiError",
    "add_error_handlers",
    "client_disconnected",
    "server_stopping",
    "to_api_error",
]

_LOG = logging.getLogger("stillroom.serve")
_CLIENT_ERROR_CODES = frozenset({"backend.context", "backend.template", "backend.schema"})
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):  # what the client is told; not an error of ours
    """A request that is answered with an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        """Refuse with an HTTP status, a sentence and a code; a recipe's problems one by one."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        self.problems = tuple(problems)

    def to_json(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        kind = _ERROR_TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        error: dict[str, Any] = {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }
        if self.problems:
            error["problems"] = [asdict(problem) for problem in self.problems]
        return {"error": error}


def client_disconnected() -> ApiError:
    """Return what is noted of a request whose client did not wait for its answer."""
    return ApiError(499, "the client left", code="client_left")


def server_stopping() -> ApiError:
    """Return what a client is told whose request a server that stops does not end."""
    told = "the server is stopping"
    return ApiError(503, told, code="stopping", headers={"Retry-After": "5"})


def to_api_error(error: BaseException) -> ApiError:
    """Return what a client is told of an error; causes and paths stay in the log.

    What the client sent wrong (DataError, a prompt that does not fit, a schema that cannot be held)
    is said as it is.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DataError) or (
        isinstance(error, BackendError) and error.code in _CLIENT_ERROR_CODES
    ):
        problem = error.problems[0]
        told = f"{problem.what}; expected {problem.expected}" if problem.expected else problem.what
        return ApiError(400, told, code=problem.code)
    if isinstance(error, RecipeError):
        told = error.problems[0].what
        return ApiError(400, told, code=error.code, param="recipe", problems=error.problems)
    number = uuid.uuid4().hex[:12]
    if isinstance(error, ResourceError) and error.code == "resource.disk-full":
        _LOG.error("error %s: %s", number, error)
        return ApiError(507, "the server's disk is full", code=error.code)
    if isinstance(error, StillroomError):
        _LOG.error("error %s: %s", number, error)
        if isinstance(error, BackendError):
            told = f"the model failed; the server's log says why under {number}"
            return ApiError(503, told, code=error.code)
    else:
        _LOG.error("error %s", number, exc_info=error)
    return ApiError(
        500, f"the server failed; its log says why under {number}", code="internal_error"
    )


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of an app with an error object."""

    def answer(refusal: ApiError) -> JSONResponse:
        return JSONResponse(refusal.to_json(), refusal.status, refusal.headers)

    async def on_refusal(request: Request, error: Exception) -> JSONResponse:
        return answer(to_api_error(error))

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            return answer(_to_validation_error([], None))
        return answer(_to_validation_error(error.errors(), error.body))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        told = f"{request.method} {request.url.path[:200]} is not served here"
        if status not in {404, 405}:
            told = "the request cannot be read"
        headers = error.headers if isinstance(error, HTTPException) else None
        return answer(ApiError(status, told, code="http_error", headers=headers))

    app.add_exception_handler(ApiError, on_refusal)
    app.add_exception_handler(StillroomError, on_refusal)
    app.add_exception_handler(Exception, on_refusal)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _to_validation_error(found: Sequence[Any], body: Any) -> ApiError:
    """Return what a client is told of a body that is not as it must be.

    Where a value may be of several shapes, what is wrong deepest within it is told: there the
    client meant that shape.
    """
    if not found:
        return ApiError(400, "the request cannot be read", code="invalid_request")
    first = found[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    paths = [
        clean_path(one["loc"][1:], body, is_missing=one["type"] == "missing")
        if one["loc"][0] == "body"
        else one["loc"][1:]
        for one in found
    ]
    inside = [at for at, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
    chosen = max(inside, key=lambda at: (len(paths[at]), -at))
    place, told = format_path(paths[chosen]), found[chosen]
    if told["type"] == "extra_forbidden":
        return ApiError(400, f"'{place}' is not served here", code="unknown_parameter", param=place)
    return ApiError(
        400, f"{place or 'body'}: {told['msg']}", code="invalid_request", param=place or None
    )
