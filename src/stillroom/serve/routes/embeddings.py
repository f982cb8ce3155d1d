"""``/v1/embeddings``: vectors of texts by a mounted embedder."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from stillroom.models.interfaces import Vectors
from stillroom.records.text_credentials import remove_marks
from stillroom.serve.errors import ApiError
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.openai.requests import OpenAIRequest
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel, TokenUsage

__all__ = ["EmbeddingList", "EmbeddingRequest", "add_routes"]


class EmbeddingRequest(OpenAIRequest):
    """POST /v1/embeddings."""

    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    kind: Literal["query", "passage"] = Field(
        "passage", description="role of the texts; an extension"
    )


class _Embedding(StrictModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(StrictModel):
    """List of embeddings."""

    object: Literal["list"]
    model: str
    data: list[_Embedding]
    usage: TokenUsage


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

    @table.add("POST", "/v1/embeddings", "models", reply=EmbeddingList)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Embed texts."""
        served, embedder = server.models.find_embedder(body.model)
        given = [body.input] if isinstance(body.input, str) else body.input
        texts = [remove_marks(text) for text in given]
        server.models.check_texts(texts, "input")
        if body.dimensions not in {None, embedder.dimensions}:
            raise ApiError(
                400,
                f"vectors have {embedder.dimensions} dimensions",
                code="invalid_dimensions",
                param="dimensions",
            )

        def work(is_stopped: IsStopped) -> Iterator[tuple[Vectors, int]]:
            tokens = sum(embedder.count_tokens(text) for text in texts)
            yield embedder.embed(texts, kind=body.kind), tokens

        vectors, tokens = await server.models.compute(served, work, request)
        return JSONResponse(_build_reply(vectors, body.model, tokens, body.encoding_format))


def _build_reply(vectors: Vectors, model: str, tokens: int, encoding: str) -> dict[str, Any]:
    """Return embeddings as OpenAI's list, as numbers or as base64 of little-endian float32."""
    rows = np.asarray(vectors, dtype="<f4")
    values = [
        base64.b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist()
        for row in rows
    ]
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": value}
            for index, value in enumerate(values)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
