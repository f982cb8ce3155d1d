"""Handlers of requests to a language model, an embedder or a reranker.

Resolves the model, converts the request to ``text.generation`` types, and sends the reply: whole or
event by event. ``middleware.concurrency`` does the waiting and threads, ``replies`` the formats.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from stillroom.errors import DataError, RecipeError
from stillroom.models import TextModel
from stillroom.models.interfaces import DenoisingModel, OpenAIPassthroughModel, Vectors
from stillroom.models.requests import stream_with_completion
from stillroom.records import Sampling
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError
from stillroom.serve.middleware.auth import ACCESS_KEY
from stillroom.serve.middleware.concurrency import IsStopped, Work, WorkerSlots, get_single_result
from stillroom.serve.middleware.metrics import ServerMetrics
from stillroom.serve.mounts import ServedModel
from stillroom.serve.openai.replies import ChatReply, ProxiedReply, build_embedding_reply
from stillroom.serve.openai.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationRequest,
    RerankRequest,
)
from stillroom.serve.openai.responses_replies import ResponsesReply
from stillroom.serve.openai.responses_requests import ResponsesRequest
from stillroom.serve.openai.stream import (
    LocalCollector,
    OutputItem,
    ProxyCollector,
    ResponseCollector,
    ResponseFormat,
    send_response,
)

__all__ = ["ModelService"]


class ModelService:
    """Handlers of requests to all mounted models."""

    def __init__(
        self, served: Sequence[ServedModel], limits: RequestLimits, counters: ServerMetrics
    ) -> None:
        """Create the worker slots: one set for each mount, since each has its own engine."""
        self.limits, self.counters = limits, counters
        self._by_name = {name: model for model in served for name in model.names}
        self._slots = {model.name: WorkerSlots(limits, model.concurrency) for model in served}

    def end_by(self, moment: float) -> None:
        """End all running answers at a time on the monotonic clock: the server stops."""
        for slots in self._slots.values():
            slots.end_by(moment)

    @property
    def names(self) -> list[str]:
        """All names that a client may request."""
        return list(self._by_name)

    def describe(self, name: str) -> dict[str, Any]:
        """Return OpenAI's model object, extended by the model's endpoints.

        Raises:
            ApiError: If no model has that name.
        """
        if name not in self._by_name:
            raise _unknown_model_error(name, self.names)
        abilities = self._by_name[name].capabilities(name)
        head = {"id": name, "object": "model", "created": 0, "owned_by": "stillroom"}
        return {**head, "abilities": abilities}

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        served = self._find_writer(body.model)
        order = body.to_generation_request(self.limits)
        if order.proxied_body is not None:
            return await self._speak(*served, order, ProxiedReply(body.model), request)
        reply = ChatReply(body.model, is_chat=True, wants_usage=body.wants_usage)
        return await self._speak(*served, order, reply, request)

    async def respond(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer POST /v1/responses."""
        served = self._find_writer(body.model)
        order = body.to_generation_request(self.limits)
        return await self._speak(*served, order, ResponsesReply(body.echo(order)), request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Answer POST /v1/completions."""
        served, model = self._find_writer(body.model)
        order = body.to_generation_request(self.limits)
        reply = ChatReply(body.model, is_chat=False, wants_usage=body.wants_usage)
        return await self._answer(served, model, order, reply, request)

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """Answer POST /v1/embeddings."""
        served = self._find(body.model, "embeddings")
        embedder = served.embedder
        if embedder is None:
            raise _unknown_model_error(body.model, self.names)
        texts = [body.input] if isinstance(body.input, str) else body.input
        self._check_texts(texts, "input")
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

        vectors, tokens = await get_single_result(self._slots[served.name].stream(work, request))
        return JSONResponse(
            build_embedding_reply(vectors, body.model, tokens, body.encoding_format)
        )

    async def rerank(self, body: RerankRequest, request: Request) -> Response:
        """Answer POST /v1/rerank, in the format of Cohere and Jina."""
        served = self._find(body.model, "rerank")
        texts = body.texts()
        self._check_texts([body.query], "query")
        self._check_texts(texts, "documents")

        def work(is_stopped: IsStopped) -> Iterator[list[float]]:
            yield _score_texts(served, body.query, texts)

        scores = await get_single_result(self._slots[served.name].stream(work, request))
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
        return JSONResponse({**head, "results": results})

    def _find(self, name: str, ability: str) -> ServedModel:
        served = self._by_name.get(name)
        if served is None:
            raise _unknown_model_error(name, self.names)
        if ability not in served.capabilities(name):
            able = [
                candidate
                for candidate in self.names
                if ability in self._by_name[candidate].capabilities(candidate)
            ]
            there = f"; available: {', '.join(able)}" if able else ""
            raise ApiError(
                404,
                f"'{name}' does not support {ability}{there}",
                code="model_not_found",
                param="model",
            )
        return served

    def _find_writer(self, name: str) -> tuple[ServedModel, TextModel]:
        served = self._find(name, "chat.completions")
        if served.model is None:
            raise _unknown_model_error(name, self.names)
        return served, served.model

    def _check_texts(self, texts: Sequence[str], param: str) -> None:
        if not 0 < len(texts) <= self.limits.texts or not all(text.strip() for text in texts):
            raise ApiError(
                400,
                f"the number of texts must be 1 to {self.limits.texts}, none of them empty",
                code="invalid_input",
                param=param,
            )

    async def _speak(
        self,
        served: ServedModel,
        model: TextModel,
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        """Answer a request from documents, by the model alone, or through another server."""
        if order.proxied_body is not None:
            return await self._to_proxied_body(
                served, model, order.proxied_body, order, reply, request
            )
        if served.ask is None or order.model == served.model_name:
            if order.retrieval_field:
                raise ApiError(
                    400,
                    f"'{order.model}' has no documents and shows no passages",
                    code="no_documents",
                    param=order.retrieval_field,
                )
            return await self._answer(served, model, order, reply, request)
        if order.prompt.schema is not None:
            raise ApiError(
                400,
                f"answers from documents are text; request JSON from '{served.model_name}'",
                code="invalid_response_format",
                param=order.schema_field,
            )
        if order.wants_canvas:
            raise _canvas_error()
        return await self._ask(served, model, order, reply, request)

    async def _ask(
        self,
        served: ServedModel,
        model: TextModel,
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        """Answer from documents, one sampling at a time."""
        ask, prompt, k = served.ask, order.prompt, order.k or served.k
        if ask is None:
            raise _unknown_model_error(order.model, self.names)

        def answer(sampling: Sampling, is_stopped: IsStopped) -> Iterator[OutputItem]:
            try:
                yield from ask(
                    prompt.messages,
                    sampling,
                    k,
                    settings=order.settings,
                    access=request.scope.get(ACCESS_KEY),
                    is_cancelled=is_stopped,
                )
            except DataError as error:
                if error.problems[0].code == "rag.access-needed":
                    raise ApiError(
                        403,
                        "the API key does not name the tenant whose documents are used",
                        code="no_tenant",
                    ) from error
                raise
            except RecipeError as error:
                problem = error.problems[0]
                field = "answering" if "rag.answer_strategies" in problem.what else "pipeline"
                raise ApiError(
                    400,
                    f"{problem.what}; expected {problem.expected}",
                    code=problem.code,
                    param=field,
                ) from error

        def work(is_stopped: IsStopped) -> Iterator[Iterator[OutputItem]]:
            return (answer(sampling, is_stopped) for sampling in order.samplings)

        return await self._send(served, model, work, order, reply, request)

    async def _answer(
        self,
        served: ServedModel,
        model: TextModel,
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        """Answer by the model alone: whole texts in a batch if possible, streams in turn."""
        prompt, samplings = order.prompt, order.samplings
        shows = model if isinstance(model, DenoisingModel) and order.wants_canvas else None
        if order.wants_canvas and (shows is None or not order.is_streamed):
            raise _canvas_error()

        def work(is_stopped: IsStopped) -> Iterator[Iterator[OutputItem]]:
            if shows is not None:
                return (
                    stream_with_completion(shows.stream_canvas(prompt, sampling))
                    for sampling in samplings
                )
            if order.is_streamed:
                return (
                    stream_with_completion(model.stream(prompt, sampling)) for sampling in samplings
                )
            prompts = [prompt] * len(samplings)
            completions = model.generate(prompts, samplings, is_cancelled=is_stopped)
            return (iter([completion]) for completion in completions)

        return await self._send(served, model, work, order, reply, request)

    async def _to_proxied_body(
        self,
        served: ServedModel,
        model: TextModel,
        sent: Mapping[str, Any],
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        """Forward a request with tools to a backend that supports tools."""
        if not isinstance(model, OpenAIPassthroughModel) or (
            served.ask and order.model == served.name
        ):
            raise ApiError(
                400,
                f"'{order.model}' supports no tools: its engine generates text alone",
                code="no_tools",
                param="tools",
            )

        def work(is_stopped: IsStopped) -> Iterator[Iterator[OutputItem]]:
            if order.is_streamed:
                return iter([model.stream_chat(sent)])
            return iter([iter([model.relay_chat(sent, is_stopped)])])

        return await self._send(served, model, work, order, reply, request)

    async def _send(
        self,
        served: ServedModel,
        model: TextModel,
        work: Work[Iterator[OutputItem]],
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        collectors: list[ResponseCollector] = [
            LocalCollector(model, order.prompt) for _ in order.samplings
        ]
        if order.proxied_body is not None:
            collectors = [ProxyCollector()]
        return await send_response(
            self._slots[served.name],
            work,
            collectors,
            reply,
            request,
            self.counters,
            is_streamed=order.is_streamed,
        )


def _unknown_model_error(name: str, known: Sequence[str]) -> ApiError:
    """Return the error for an unknown model name."""
    there = f"available: {', '.join(known)}" if known else "available: none"
    return ApiError(
        404,
        f"model {name[:80]!r} is not served here; {there}",
        code="model_not_found",
        param="model",
    )


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


def _canvas_error() -> ApiError:
    return ApiError(
        400,
        "canvas needs stream: true and a diffusion model",
        code="no_canvas",
        param="stream_options",
    )
