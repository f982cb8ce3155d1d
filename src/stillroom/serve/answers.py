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
    problems: list[Problem] = Field(default_factory=list, description="of a recipe")


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
