"""Verbatim trace of a text: which of its words stand in the run's documents and records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from fastapi import Request
from pydantic import Field

from stillroom.serve.errors import ApiError
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.openai.requests import OpenAIRequest
from stillroom.serve.openapi import StrictModel
from stillroom.serve.routing import RouteTable, ServerContext
from stillroom.text.verbatim.trace import MIN_WORDS, VerbatimTrace

__all__ = ["TraceRequest", "TraceResponse", "add_routes"]


class TraceRequest(OpenAIRequest):
    """POST /v1/traces."""

    text: str = Field(min_length=1, max_length=100_000, description="text of the answer")
    cited: list[int] = Field(
        default_factory=list,
        max_length=100,
        description="numbers of its citations, whose marks are no words",
    )
    min_words: int = Field(MIN_WORDS, ge=1, le=1000, description="least number of words of a span")


class _TracedDocument(StrictModel):
    path: str
    byte_start: int
    byte_end: int
    is_exact: bool
    pages: list[int]
    label: str
    digest: str
    origin: str
    places: int
    notes: list[str]


class _TracedRecord(StrictModel):
    record: str
    turn: int
    role: str
    start: int
    end: int
    origin: str
    license: str
    method: str
    split: str


class _TracedSpan(StrictModel):
    start: int
    end: int
    text: str
    words: int
    chance: float
    places: int
    in_documents: int
    in_records: int
    documents: list[_TracedDocument]
    records: list[_TracedRecord]


class TraceResponse(StrictModel):
    """Spans of the text with their sources, and the ranges of characters that are its own."""

    object: Literal["trace"]
    words: int
    in_documents: int
    in_records: int
    own_words: int
    min_words: int
    searched: int
    spans: list[_TracedSpan]
    own: list[list[int]]
    notes: list[str]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

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

        traced = (await server.models.compute(served, work, request)).to_json()
        del traced["text"]
        return {"object": "trace", **traced, "spans": [_hide_folders(s) for s in traced["spans"]]}


def _hide_folders(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span without the server's own paths."""
    documents = [{k: v for k, v in row.items() if k != "index"} for row in span["documents"]]
    records = [{k: v for k, v in row.items() if k != "records"} for row in span["records"]]
    return {**span, "documents": documents, "records": records}
