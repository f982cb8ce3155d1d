"""Response schemas and corrections of the published OpenAPI description.

The schemas describe replies and do not build them: tests compare the server's replies with them, so
that a field missing on one side is found.

Refusals have status 400, never FastAPI's 422, and one format; streams are described besides whole
replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

from stillroom import __version__

__all__ = [
    "EVENT_RESPONSES",
    "STREAM_RESPONSES",
    "ChatCompletion",
    "EmbeddingList",
    "ErrorReply",
    "JobFileList",
    "JobList",
    "JobStatus",
    "MediaCheckResult",
    "ModelInfo",
    "ModelList",
    "ProblemDetail",
    "RecipeCheck",
    "RecipeKind",
    "RecipeKindList",
    "RecipeKindSummary",
    "RerankResponse",
    "ResponseObject",
    "ServerStatus",
    "TextCompletion",
    "WorkspaceList",
    "add_openapi",
]


class _StrictModel(BaseModel):
    """Model of a complete reply; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _ExtensibleModel(BaseModel):
    """Model of the common fields of a reply; some kinds add more."""

    model_config = ConfigDict(extra="allow")


class ProblemDetail(_StrictModel):
    """One problem of a request."""

    what: str
    code: str
    where: str
    expected: str
    next: str


class _ErrorBody(_StrictModel):
    message: str
    type: str
    param: str | None
    code: str
    problems: list[ProblemDetail] = Field(
        default_factory=list,
        description="problems of a recipe, and of requests that refer to an earlier answer",
    )


class ErrorReply(_StrictModel):
    """Body of every refusal."""

    error: _ErrorBody


class ServerStatus(_StrictModel):
    """Status of the server."""

    status: str


class ModelInfo(_StrictModel):
    """Name that clients may request."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    abilities: list[str]


class ModelList(_StrictModel):
    """List of all model names."""

    object: Literal["list"]
    data: list[ModelInfo]


class _TokenUsage(_ExtensibleModel):
    prompt_tokens: int
    total_tokens: int


class _ChatMessage(_ExtensibleModel):
    role: Literal["assistant"]
    content: str | None


class _ChatChoice(_ExtensibleModel):
    index: int
    finish_reason: str | None
    message: _ChatMessage


class ChatCompletion(_ExtensibleModel):
    """Chat reply."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: _TokenUsage


class _TextChoice(_ExtensibleModel):
    index: int
    finish_reason: str | None
    text: str


class TextCompletion(_ExtensibleModel):
    """Text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: _TokenUsage


class _UrlCitation(_StrictModel):
    type: Literal["url_citation"]
    start_index: int
    end_index: int
    title: str
    url: str
    passage_id: str
    byte_start: int
    byte_end: int
    pages: list[int]


class _OutputText(_StrictModel):
    type: Literal["output_text"]
    text: str
    annotations: list[_UrlCitation]
    logprobs: list[Any] = Field(max_length=0)


class _OutputRefusal(_StrictModel):
    type: Literal["refusal"]
    refusal: str


class _MessageItem(_StrictModel):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[_OutputText | _OutputRefusal]
    citations: list[dict[str, Any]] | None = Field(None, description="of documents")
    answer: dict[str, Any] | None = Field(
        None, description="details of how it was made from documents"
    )
    turns_not_read: int | None = None


class _FunctionCallItem(_StrictModel):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class _IncompleteDetails(_StrictModel):
    reason: Literal["max_output_tokens", "content_filter"]


class _InputTokenDetails(_StrictModel):
    cached_tokens: int
    cache_write_tokens: int


class _OutputTokenDetails(_StrictModel):
    reasoning_tokens: int


class _ResponseUsage(_StrictModel):
    input_tokens: int
    input_tokens_details: _InputTokenDetails
    output_tokens: int
    output_tokens_details: _OutputTokenDetails
    total_tokens: int


class ResponseObject(_StrictModel):
    """Chat turn as items, with effective request fields; null means unknown."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: _IncompleteDetails | None
    output: list[_MessageItem | _FunctionCallItem]
    usage: _ResponseUsage | None
    user: None
    model: str
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: Literal[0]
    top_p: float | None
    truncation: Literal["disabled"]


class _Embedding(_StrictModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(_StrictModel):
    """List of embeddings."""

    object: Literal["list"]
    model: str
    data: list[_Embedding]
    usage: _TokenUsage


class _RerankedDocument(_StrictModel):
    text: str


class _RerankResult(_StrictModel):
    index: int
    relevance_score: float
    document: _RerankedDocument | None = None


class RerankResponse(_StrictModel):
    """Documents in order of relevance."""

    id: str
    object: Literal["list"]
    model: str
    results: list[_RerankResult]


class RecipeKindSummary(_StrictModel):
    """Kind of recipe."""

    kind: str
    summary: str


class RecipeKindList(_StrictModel):
    """List of all kinds."""

    object: Literal["list"]
    data: list[RecipeKindSummary]


class RecipeKind(_StrictModel):
    """Kind of recipe with its JSON Schema and a commented example."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    object: Literal["recipe.kind"]
    kind: str
    summary: str
    schema_: dict[str, Any] = Field(alias="schema")
    commented: str


class RecipeCheck(_ExtensibleModel):
    """Validity of a recipe, its resource estimate, and whether that fits."""

    object: Literal["recipe.check"]
    valid: bool
    fits: bool | None
    problems: list[ProblemDetail]


class _WorkspaceEntry(_StrictModel):
    path: str
    size_bytes: int | None
    kind: str | None = None


class WorkspaceList(_StrictModel):
    """Entries of a folder that recipes can name."""

    object: Literal["list"]
    path: str
    data: list[_WorkspaceEntry]
    has_more: bool


class _JobError(_StrictModel):
    code: str
    message: str
    problems: list[ProblemDetail]


class _JobArtifact(_StrictModel):
    kind: str
    digest: str
    path: str


class JobStatus(_StrictModel):
    """Current status of a job."""

    id: str
    object: Literal["job"]
    kind: str
    name: str
    state: Literal["queued", "running", "cancelling", "cancelled", "failed", "finished"]
    position: int | None
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    takes: int
    progress: dict[str, Any] | None
    can_cancel: bool
    can_resume: bool
    error: _JobError | None
    artifact: _JobArtifact | None


class JobList(_StrictModel):
    """List of jobs, newest first."""

    object: Literal["list"]
    data: list[JobStatus]
    has_more: bool


class _JobFile(_StrictModel):
    path: str
    size_bytes: int


class JobFileList(_StrictModel):
    """Files of a job."""

    object: Literal["list"]
    finished: bool
    data: list[_JobFile]
    has_more: bool


class MediaCheckResult(_StrictModel):
    """Findings on media."""

    object: Literal["forensics.check"]
    files: list[dict[str, Any]]
    limits: list[str]


STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {}}}}
}


"""Reply that is a stream of events if the client requests one."""


EVENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "stream of events",
        "content": {"text/event-stream": {"schema": {}}},
    },
    204: {"description": "the job has ended and the client has all its events"},
}


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
