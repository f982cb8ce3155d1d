"""``/v1/judgments``: human feedback on answers, stored, listed and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict, Field

from stillroom.errors import DataError, ResourceError
from stillroom.evaluate.qa.judgments import AskedAnswer, Judgment, JudgmentSide, Verdict
from stillroom.records.text_credentials import remove_marks
from stillroom.serve.errors import ApiError, tenant_needed
from stillroom.serve.middleware.auth import ACCESS_KEY
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.mounts import ServedModel, StoredJudgments
from stillroom.serve.openai.requests import OpenAIRequest
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel

__all__ = [
    "DeletedJudgments",
    "JudgmentList",
    "JudgmentRequest",
    "JudgmentResponse",
    "ListedJudgment",
    "add_routes",
]

_MAX_CITATIONS = 100
_MAX_QUOTES = 100  # the items of a list are a quote each
_PAGE_SIZE = 100
T = TypeVar("T")
_ModelName = Annotated[str, Query(max_length=200, description="name that answered from documents")]


class _JudgedCitation(BaseModel):
    """A citation of the answer; its other fields may be sent back, too."""

    model_config = ConfigDict(extra="ignore")

    number: int
    passage_id: str = Field(max_length=200)


class _JudgedQuote(BaseModel):
    """A quote of the answer; its other fields may be sent back, too."""

    model_config = ConfigDict(extra="ignore")

    text: str = Field(min_length=1, max_length=8000)
    answer_start: int = Field(0, ge=0)
    start: int = Field(0, ge=0)
    short: str = Field("", max_length=8000)
    short_start: int = Field(0, ge=0)


class JudgmentRequest(OpenAIRequest):
    """POST /v1/judgments."""

    question: str = Field(min_length=1, max_length=8000, pattern=r"\S")
    answer: str = Field(max_length=100_000, description="text of the answer, with citation marks")
    citations: list[_JudgedCitation] | None = Field(
        None, max_length=_MAX_CITATIONS, description="citations of the answer"
    )
    quotes: list[_JudgedQuote] | None = Field(
        None, max_length=_MAX_QUOTES, description="quotes of the answer's details"
    )
    index: str | None = Field(
        None, max_length=200, description="field of the answer's details: state of the index"
    )
    answered_by: str | None = Field(
        None, max_length=200, description="field of the answer's details"
    )
    verdict: Verdict
    quote: str = Field(
        "", max_length=8000, description="words of a document that answer, for the verdict 'quote'"
    )


class _JudgmentEvidence(StrictModel):
    document_id: str
    passage: str
    start: int
    end: int
    quote: str
    file: str


class JudgmentResponse(StrictModel):
    """The stored judgment, and the side of the question set that it belongs to."""

    id: str
    object: Literal["judgment"]
    verdict: Verdict
    split: JudgmentSide
    answers: list[str]
    evidence: list[_JudgmentEvidence]


class ListedJudgment(JudgmentResponse):
    """A stored judgment; ``stands``: whether the documents still hold its evidence, if any."""

    question: str
    answer: str
    time: str
    stands: bool | None


class JudgmentList(StrictModel):
    """Judgments that count, newest first: of each answer the last one."""

    object: Literal["list"]
    data: list[ListedJudgment]
    has_more: bool


class DeletedJudgments(StrictModel):
    """What was deleted on a question: ``deleted`` counts judgments and answers."""

    id: str
    object: Literal["judgment"]
    deleted: int


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes."""
    _add_judge_route(table, server)
    _add_manage_routes(table, server)


def _add_judge_route(table: RouteTable, server: ServerContext) -> None:

    @table.add("POST", "/v1/judgments", "judgments", reply=JudgmentResponse)
    async def judge(body: JudgmentRequest, request: Request) -> dict[str, Any]:
        """Store a person's verdict on an answer from documents."""
        served, stored = _find_stored(server, body.model)
        asked = AskedAnswer(
            remove_marks(body.question),
            remove_marks(body.answer),
            {citation.number: citation.passage_id for citation in body.citations or ()},
            body.index or "",
            body.answered_by or "",
            quotes=tuple(quote.model_dump() for quote in body.quotes or ()),
        )
        access = request.scope.get(ACCESS_KEY)

        def work() -> Judgment:
            return stored.judge(asked, body.verdict, body.quote, access)

        return _describe(await _compute(server, served, work, request))


def _add_manage_routes(table: RouteTable, server: ServerContext) -> None:
    @table.add("GET", "/v1/judgments", "judgments:manage", reply=JudgmentList)
    async def judgments(
        request: Request,
        model: _ModelName,
        limit: Annotated[int, Query(ge=1, le=_PAGE_SIZE)] = _PAGE_SIZE,
        before: Annotated[str, Query(max_length=80)] = "",
    ) -> dict[str, Any]:
        """List the client's judgments, newest first; ``before`` an id continues a listing there."""
        served, stored = _find_stored(server, model)
        access = request.scope.get(ACCESS_KEY)
        rows = await _compute(server, served, lambda: stored.read(access), request)
        rows.reverse()
        ids = [one.id for one, _ in rows]
        if before and before not in ids:
            message = f"there is no judgment '{before}'"
            raise ApiError(404, message, code="judge.no-answer", param="before")
        after = rows[ids.index(before) + 1 :] if before else rows
        data = [
            {
                **_describe(one),
                "question": one.asked.question,
                "answer": one.asked.text,
                "time": one.time,
                "stands": stands,
            }
            for one, stands in after[:limit]
        ]
        return {"object": "list", "data": data, "has_more": len(after) > limit}

    @table.add("DELETE", "/v1/judgments/{name}", "judgments:manage", reply=DeletedJudgments)
    async def delete(name: str, request: Request, model: _ModelName) -> dict[str, Any]:
        """Delete all that is stored on the question of a judgment."""
        served, stored = _find_stored(server, model)
        access = request.scope.get(ACCESS_KEY)
        count = await _compute(server, served, lambda: stored.delete(name, access), request)
        return {"id": name, "object": "judgment", "deleted": count}


def _find_stored(server: ServerContext, model: str) -> tuple[ServedModel, StoredJudgments]:
    served = server.models.find(model, "citations")
    if served.judgments is None:
        message = f"'{model}' takes no judgments"
        raise ApiError(404, message, code="model_not_found", param="model")
    return served, served.judgments


async def _compute(
    server: ServerContext, served: ServedModel, work: Callable[[], T], request: Request
) -> T:
    """Return the result of work on stored judgments, when its turn comes."""

    def run(is_stopped: IsStopped) -> Iterator[T]:
        try:
            yield work()
        except DataError as error:
            if error.code == "rag.access-needed":
                raise tenant_needed() from error
            if error.code == "judge.no-answer":
                raise ApiError(404, "there is no such judgment", code=error.code) from error
            raise
        except ResourceError as error:
            if error.code != "judge.unwritable":
                raise
            message = "the server cannot store judgments beside these documents"
            raise ApiError(503, message, code=error.code) from error

    return await server.models.compute(served, run, request)


def _describe(judgment: Judgment) -> dict[str, Any]:
    return {
        "id": judgment.id,
        "object": "judgment",
        "verdict": judgment.verdict,
        "split": judgment.side,
        "answers": list(judgment.answers),
        "evidence": [dict(part) for part in judgment.evidence],
    }
