"""Judgment of an answer, stored as a question to train and evaluate by; and an answer's evidence.

The evidence is what an answer from documents was made from, signed if the server has a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from stillroom.errors import DataError, ResourceError
from stillroom.evaluate.qa.judgments import AskedAnswer, Judgment, JudgmentSide, Verdict
from stillroom.records.text_credentials import remove_marks
from stillroom.serve.errors import ApiError, tenant_needed
from stillroom.serve.evidence import MAX_KEPT_ANSWERS
from stillroom.serve.middleware.auth import ACCESS_KEY, CLIENT_KEY
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.openai.requests import OpenAIRequest
from stillroom.serve.openapi import StrictModel
from stillroom.serve.routing import RouteTable, ServerContext

__all__ = ["EvidenceEnvelope", "JudgmentRequest", "JudgmentResponse", "add_routes"]

_MAX_CITATIONS = 100
_MAX_QUOTES = 20


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
    citations: list[_JudgedCitation] = Field(
        default_factory=list, max_length=_MAX_CITATIONS, description="citations of the answer"
    )
    quotes: list[_JudgedQuote] = Field(
        default_factory=list, max_length=_MAX_QUOTES, description="quotes of the answer's details"
    )
    index: str = Field(
        "", max_length=200, description="field of the answer's details: state of the index"
    )
    answered_by: str = Field("", max_length=200, description="field of the answer's details")
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


class _EnvelopeSignature(StrictModel):
    keyid: str
    sig: str


class EvidenceEnvelope(StrictModel):
    """DSSE envelope of the evidence, as a file for 'stillroom verify'."""

    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815  # DSSE's name
    signatures: list[_EnvelopeSignature]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes."""

    @table.add("POST", "/v1/judgments", "judgments", reply=JudgmentResponse)
    async def judge(body: JudgmentRequest, request: Request) -> dict[str, Any]:
        """Store a person's verdict on an answer from documents."""
        served = server.models.find(body.model, "citations")
        if served.judge is None:
            raise ApiError(
                404, f"'{body.model}' takes no judgments", code="model_not_found", param="model"
            )
        asked = AskedAnswer(
            body.question,
            remove_marks(body.answer),
            {citation.number: citation.passage_id for citation in body.citations},
            body.index,
            body.answered_by,
            quotes=tuple(quote.model_dump() for quote in body.quotes),
        )
        access, store = request.scope.get(ACCESS_KEY), served.judge

        def work(is_stopped: IsStopped) -> Iterator[Judgment]:
            try:
                yield store(asked, body.verdict, body.quote, access=access)
            except DataError as error:
                if error.code == "rag.access-needed":
                    raise tenant_needed() from error
                raise
            except ResourceError as error:
                if error.code != "judge.unwritable":
                    raise
                message = "the server cannot store judgments beside these documents"
                raise ApiError(503, message, code=error.code) from error

        judgment = await server.models.compute(served, work, request)
        return {
            "id": judgment.id,
            "object": "judgment",
            "verdict": judgment.verdict,
            "split": judgment.side,
            "answers": list(judgment.answers),
            "evidence": [dict(part) for part in judgment.evidence],
        }

    @table.add("GET", "/v1/answers/{reply}/evidence", "models", reply=EvidenceEnvelope)
    async def evidence(
        reply: str, request: Request, choice: Annotated[int, Query(ge=0)] = 0
    ) -> dict[str, Any]:
        """Return the evidence of one of the last answers, to the client that received it."""
        client = request.scope.get(CLIENT_KEY)
        seal = server.models.evidence.seal
        envelope = await run_in_threadpool(seal, reply, choice, client)
        if envelope is None:
            raise ApiError(
                404,
                f"there is no evidence of {reply[:80]!r}: the last {MAX_KEPT_ANSWERS} answers from "
                "documents are kept, for the key that asked",
                code="no_evidence",
                param="reply",
            )
        return envelope
