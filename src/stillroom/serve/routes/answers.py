"""Proof of an answer: its signed evidence, and its words verbatim in documents and records.

The evidence is what an answer from documents was made from, signed if the server has a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, TypeAdapter

from stillroom.serve.errors import ApiError
from stillroom.serve.evidence import MAX_KEPT_ANSWERS
from stillroom.serve.middleware.auth import CLIENT_KEY
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.openai.requests import OpenAIRequest
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel
from stillroom.text.verbatim.trace import MIN_WORDS, VerbatimSpan, VerbatimTrace

__all__ = ["EvidenceEnvelope", "TraceRequest", "TraceResponse", "add_routes"]

_TRACE = TypeAdapter(VerbatimTrace)


class TraceRequest(OpenAIRequest):
    """POST /v1/traces."""

    text: str = Field(min_length=1, max_length=100_000, description="text of the answer")
    cited: list[int] = Field(
        default_factory=list,
        max_length=100,
        description="numbers of its citations, whose marks are no words",
    )
    min_words: int = Field(MIN_WORDS, ge=1, le=1000, description="least number of words of a span")


class TraceResponse(StrictModel):
    """Spans of the text with their sources, and the ranges of characters that are its own."""

    object: Literal["trace"]
    words: int
    in_documents: int
    in_records: int
    own_words: int
    min_words: int
    searched: int
    spans: list[VerbatimSpan]
    own: list[list[int]]
    notes: list[str]


class _EnvelopeSignature(StrictModel):
    keyid: str
    sig: str


class EvidenceEnvelope(StrictModel):
    """DSSE envelope of the evidence, as a file for 'stillroom verify'."""

    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815  # DSSE's name
    signatures: list[_EnvelopeSignature]
    payload_sha256: str = Field(default="", description="digest of the payload, if it is unsigned")


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes."""

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

    @table.add("POST", "/v1/traces", "models", reply=TraceResponse)
    async def trace(body: TraceRequest, request: Request) -> dict[str, Any]:
        """Find a text's words verbatim in documents and training records."""
        served = server.models.find(body.model, "citations")
        if served.trace is None:
            raise ApiError(
                404, f"'{body.model}' takes no traces", code="model_not_found", param="model"
            )
        find = served.trace

        def work(is_stopped: IsStopped) -> Iterator[VerbatimTrace]:
            yield find(body.text, body.cited, body.min_words)

        traced = await server.models.compute(served, work, request)
        return {"object": "trace", **_TRACE.dump_python(traced, mode="json", exclude={"text"})}
