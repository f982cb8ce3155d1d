"""``/v1/rerank``: documents ranked by relevance to a query, as Cohere and Jina do."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from typing import Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from stillroom.records.text_credentials import remove_marks
from stillroom.serve.errors import JsonReply
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.mounts import ServedModel
from stillroom.serve.openai.requests import OpenAIRequest
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel

__all__ = ["RerankRequest", "RerankResponse", "add_routes"]


class _RerankDocument(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str


class RerankRequest(OpenAIRequest):
    """POST /v1/rerank, in the format of Cohere and Jina."""

    query: str
    documents: list[str | _RerankDocument] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False

    def texts(self) -> list[str]:
        """Return the documents' texts."""
        return [
            document if isinstance(document, str) else document.text for document in self.documents
        ]


class _RerankedDocument(StrictModel):
    text: str


class _RerankResult(StrictModel):
    index: int
    relevance_score: float
    document: _RerankedDocument | None = None


class RerankResponse(StrictModel):
    """Documents in order of relevance."""

    id: str
    object: Literal["list"]
    model: str
    results: list[_RerankResult]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

    @table.add("POST", "/v1/rerank", "models", reply=RerankResponse)
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Rank documents by their relevance to a query."""
        served, texts = server.models.find(body.model, "rerank"), body.texts()
        query, *read = map(remove_marks, [body.query, *texts])
        server.models.check_texts([query], "query")
        server.models.check_texts(read, "documents")

        def work(is_stopped: IsStopped) -> Iterator[list[float]]:
            yield _score_texts(served, query, read)

        scores = await server.models.compute(served, work, request)
        order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: body.top_n]
        results = [
            {
                "index": index,
                "relevance_score": scores[index],
                **({"document": {"text": texts[index]}} if body.return_documents else {}),
            }
            for index in order
        ]
        head = {"id": f"rerank-{uuid.uuid4().hex[:24]}", "object": "list", "model": body.model}
        return JsonReply({**head, "results": results})


def _score_texts(served: ServedModel, query: str, texts: Sequence[str]) -> list[float]:
    """Return relevance scores of texts for a query, in [0, 1] for local models.

    Logits of a cross-encoder pass through a sigmoid; a cosine similarity (-1 to 1) is mapped
    linearly.
    """
    if served.reranker is not None:
        scores = served.reranker.score(query, texts)
        is_odds = not served.reranker.fingerprint.startswith("endpoint:")
        return [_apply_sigmoid(score) for score in scores] if is_odds else scores
    if served.embedder is None:
        raise TypeError(f"{served.name} has no embedder or reranker to rank with")
    query_vector = served.embedder.embed([query], kind="query")[0]
    rows = served.embedder.embed(texts, kind="passage")
    return [(1.0 + float(likeness)) / 2 for likeness in rows @ query_vector]


def _apply_sigmoid(odds: float) -> float:
    bounded = max(min(odds, 700.0), -700.0)
    return 1.0 / (1.0 + math.exp(-bounded))
