"""HTTP errors in the format of the OpenAI API (status, code); internal errors are only logged.

A refusal names what the client can change. Any unexpected error becomes a plain 500 with a number
that is also in the server's log.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import PydanticSerializationError, to_json
from starlette.exceptions import HTTPException
from typing_extensions import override

from stillroom.errors import (
    BackendError,
    DataError,
    MissingExtraError,
    Problem,
    RecipeError,
    ResourceError,
    StillroomError,
)
from stillroom.jobs.extras import find_missing_extra
from stillroom.recipes.schema import clean_path
from stillroom.recipes.yaml_text import format_path

__all__ = [
    "ApiError",
    "JsonReply",
    "add_error_handlers",
    "client_disconnected",
    "find_missing_extra",
    "server_stopping",
    "tenant_needed",
    "to_api_error",
]

_LOG = logging.getLogger("stillroom.serve")
_CLIENT_ERROR_CODES = frozenset(
    {"backend.context", "backend.template", "backend.template-limit", "backend.schema"}
)
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):  # sent to the client; not part of StillroomError
    """Request that is answered with an error object."""

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
        """Set the HTTP status, the message, the code and the problems of a recipe."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        self.problems = tuple(problems)

    def to_json(self) -> dict[str, Any]:
        """Return the error object of the OpenAI API."""
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


class JsonReply(JSONResponse):
    """Reply of JSON: lone surrogates, invalid in UTF-8, stay escaped; NaN and infinity are null."""

    @override
    def render(self, content: Any) -> bytes:
        try:
            return to_json(content, inf_nan_mode="null")
        except PydanticSerializationError:
            finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
            return json.dumps(finite).encode()


def client_disconnected() -> ApiError:
    """Return the error that is logged for a request whose client disconnected."""
    return ApiError(499, "the client disconnected", code="client_left")


def tenant_needed() -> ApiError:
    """Return the error for documents of tenants that a key of no tenant asks for."""
    message = "the API key does not name the tenant whose documents are used"
    return ApiError(403, message, code="no_tenant")


def server_stopping() -> ApiError:
    """Return the error for a request that is cut off by a shutdown."""
    message = "the server is shutting down"
    return ApiError(503, message, code="stopping", headers={"Retry-After": "5"})


def to_api_error(error: BaseException) -> ApiError:
    """Convert an exception to the error sent to the client; causes and paths stay in the log.

    Errors in the client's input (DataError, a prompt that exceeds the context, an unsupported
    schema) are sent unchanged.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DataError) or (
        isinstance(error, BackendError) and error.code in _CLIENT_ERROR_CODES
    ):
        problem = error.problems[0]
        message = (
            f"{problem.what}; expected {problem.expected}" if problem.expected else problem.what
        )
        return ApiError(400, message, code=problem.code)
    if isinstance(error, RecipeError):
        message = error.problems[0].what
        return ApiError(400, message, code=error.code, param="recipe", problems=error.problems)
    missing = find_missing_extra(error)
    if missing is not None or isinstance(error, MissingExtraError):
        return ApiError(501, str(missing or error).split("\n", 1)[0], code="extra.missing")
    number = uuid.uuid4().hex[:12]
    if isinstance(error, ResourceError) and error.code == "resource.disk-full":
        _LOG.error("error %s: %s", number, error)
        return ApiError(507, "the server's disk is full", code=error.code)
    if isinstance(error, StillroomError):
        _LOG.error("error %s: %s", number, error)
        if error.code == "rag.index-replaced":
            message = "the documents are being indexed again; ask again in a moment"
            return ApiError(503, message, code=error.code, headers={"Retry-After": "5"})
        if isinstance(error, BackendError):
            message = f"the model failed; the server's log has the reason under {number}"
            return ApiError(503, message, code=error.code)
    else:
        _LOG.error("error %s", number, exc_info=error)
    return ApiError(
        500,
        f"the server failed; the server's log has the reason under {number}",
        code="internal_error",
    )


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of an app with an error object."""

    def answer(refusal: ApiError) -> JsonReply:
        return JsonReply(refusal.to_json(), refusal.status, refusal.headers)

    async def on_refusal(request: Request, error: Exception) -> JsonReply:
        return answer(to_api_error(error))

    async def on_invalid(request: Request, error: Exception) -> JsonReply:
        if not isinstance(error, RequestValidationError):
            return answer(_to_validation_error([], None))
        return answer(_to_validation_error(error.errors(), error.body))

    async def on_http(request: Request, error: Exception) -> JsonReply:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 400:  # of nesting, digits, encodings or names that the reader of JSON refuses
            message, cause = "the body is not valid JSON", error.__cause__
            message += f": {cause}" if type(cause) is ValueError else ""
            return answer(ApiError(400, message, code="invalid_json"))
        message = f"{request.method[:20]} {request.url.path[:200]} is not served here"
        if status not in {404, 405}:
            message = "the request cannot be read"
        headers = error.headers if isinstance(error, HTTPException) else None
        return answer(ApiError(status, message, code="http_error", headers=headers))

    app.add_exception_handler(ApiError, on_refusal)
    app.add_exception_handler(StillroomError, on_refusal)
    app.add_exception_handler(Exception, on_refusal)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _to_validation_error(errors: Sequence[Any], body: Any) -> ApiError:
    """Return the error for a request body that fails validation.

    For a union of several types, the error at the deepest location is reported: it belongs to the
    variant that the client most likely meant.
    """
    if not errors:
        return ApiError(400, "the request cannot be read", code="invalid_request")
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json")
    paths = [
        clean_path(error["loc"][1:], body, is_missing=error["type"] == "missing")
        if error["loc"][0] == "body"
        else error["loc"][1:]
        for error in errors
    ]
    inside = [index for index, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
    deepest = max(inside, key=lambda index: (len(paths[index]), -index))
    location, error = format_path(paths[deepest]), errors[deepest]
    if error["type"] == "extra_forbidden":
        return ApiError(
            400, f"'{location}' is not served here", code="unknown_parameter", param=location
        )
    message = f"{location or 'body'}: {error['msg']}"
    ctx = error.get("ctx", {})
    is_off = ctx.get("expected") in {"0", "False"} or ctx.get("max_length") == 0
    if is_off or error["type"] == "none_required":
        message = f"'{location}' is not supported here; leave it out"
    if error["type"] in {"model_attributes_type", "model_type", "dict_type"}:
        message = f"{location} must be a JSON object"
        if not location:  # as curl sends it without the header
            message = "the body must be a JSON object, sent with Content-Type: application/json"
    return ApiError(400, message, code="invalid_request", param=location or None)
