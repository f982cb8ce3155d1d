"""What clients get, described: the models of the published OpenAPI description.

They describe and are not used to make answers: what the server sends is held to them by tests, so
that a field that is forgotten on one side is found.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Chat",
    "Embeddings",
    "ErrorReply",
    "Forensics",
    "Job",
    "JobFiles",
    "JobList",
    "ModelList",
    "ModelRow",
    "Problem",
    "RecipeCheck",
    "RecipeKind",
    "RecipeKindRow",
    "RecipeKinds",
    "Reranked",
    "Responded",
    "Status",
    "TextCompletion",
    "WorkspaceList",
]


class _Closed(BaseModel):
    """All fields that there are; a reply with another one is wrong."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Open(BaseModel):
    """The fields that there always are; some kinds have more."""

    model_config = ConfigDict(extra="allow")


class Problem(_Closed):
    """One thing that is wrong."""

    what: str
    code: str
    where: str
    expected: str
    next: str


class _Error(_Closed):
    message: str
    type: str
    param: str | None
    code: str
    problems: list[Problem] = Field(
        default_factory=list, description="of a recipe, and of what builds on an earlier answer"
    )


class ErrorReply(_Closed):
    """Every refusal."""

    error: _Error


class Status(_Closed):
    """Of the server."""

    status: str


class ModelRow(_Closed):
    """A name that clients may ask for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    abilities: list[str]


class ModelList(_Closed):
    """All names."""

    object: Literal["list"]
    data: list[ModelRow]


class _Usage(_Open):
    prompt_tokens: int
    total_tokens: int


class _ChatMessage(_Open):
    role: Literal["assistant"]
    content: str | None


class _ChatChoice(_Open):
    index: int
    finish_reason: str | None
    message: _ChatMessage


class Chat(_Open):
    """A chat turn."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: _Usage


class _TextChoice(_Open):
    index: int
    finish_reason: str | None
    text: str


class TextCompletion(_Open):
    """A text that was gone on with."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: _Usage


class _Mark(_Closed):
    type: Literal["url_citation"]
    start_index: int
    end_index: int
    title: str
    url: str
    passage_id: str
    byte_start: int
    byte_end: int
    pages: list[int]


class _WrittenText(_Closed):
    type: Literal["output_text"]
    text: str
    annotations: list[_Mark]
    logprobs: list[Any] = Field(max_length=0)


class _RefusedText(_Closed):
    type: Literal["refusal"]
    refusal: str


class _MessageItem(_Closed):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[_WrittenText | _RefusedText]
    citations: list[dict[str, Any]] | None = Field(None, description="of documents")
    answer: dict[str, Any] | None = Field(None, description="how it was made of documents")
    turns_not_read: int | None = None


class _CallItem(_Closed):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class _Incomplete(_Closed):
    reason: Literal["max_output_tokens", "content_filter"]


class _InputDetails(_Closed):
    cached_tokens: int
    cache_write_tokens: int


class _OutputDetails(_Closed):
    reasoning_tokens: int


class _ItemUsage(_Closed):
    input_tokens: int
    input_tokens_details: _InputDetails
    output_tokens: int
    output_tokens_details: _OutputDetails
    total_tokens: int


class Responded(_Closed):
    """A chat turn, in items. What is said of the request is what held; null is not known here."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: _Incomplete | None
    output: list[_MessageItem | _CallItem]
    usage: _ItemUsage | None
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


class _Vector(_Closed):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(_Closed):
    """Vectors."""

    object: Literal["list"]
    model: str
    data: list[_Vector]
    usage: _Usage


class _Text(_Closed):
    text: str


class _Fit(_Closed):
    index: int
    relevance_score: float
    document: _Text | None = None


class Reranked(_Closed):
    """Documents in order."""

    id: str
    object: Literal["list"]
    model: str
    results: list[_Fit]


class RecipeKindRow(_Closed):
    """A kind of recipe."""

    kind: str
    summary: str


class RecipeKinds(_Closed):
    """All kinds."""

    object: Literal["list"]
    data: list[RecipeKindRow]


class RecipeKind(_Closed):
    """A kind, its JSON Schema and a commented recipe."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    object: Literal["recipe.kind"]
    kind: str
    summary: str
    schema_: dict[str, Any] = Field(alias="schema")
    commented: str


class RecipeCheck(_Open):
    """Whether a recipe is valid, what it needs and whether that fits."""

    object: Literal["recipe.check"]
    valid: bool
    fits: bool | None
    problems: list[Problem]


class _WorkspaceEntry(_Closed):
    path: str
    size_bytes: int | None
    kind: str | None = None


class WorkspaceList(_Closed):
    """What lies in a folder that recipes can name."""

    object: Literal["list"]
    path: str
    data: list[_WorkspaceEntry]
    has_more: bool


class _JobError(_Closed):
    code: str
    message: str
    problems: list[Problem]


class _JobArtifact(_Closed):
    kind: str
    digest: str
    path: str


class Job(_Closed):
    """A job as it stands."""

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


class JobList(_Closed):
    """Jobs, newest first."""

    object: Literal["list"]
    data: list[Job]
    has_more: bool


class _JobFile(_Closed):
    path: str
    size_bytes: int


class JobFiles(_Closed):
    """The files of a job."""

    object: Literal["list"]
    finished: bool
    data: list[_JobFile]
    has_more: bool


class Forensics(_Closed):
    """What is known of media."""

    object: Literal["forensics.check"]
    files: list[dict[str, Any]]
    limits: list[str]
