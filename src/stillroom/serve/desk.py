"""The desk: what becomes of a request to a model, an embedder or a reranker.

Finds who is asked, says what they are asked in the floor's own nouns, and sends what comes: whole
or event by event. Waiting and threads are the slots', shapes are the replies'.
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
from stillroom.models.protocols import CanvasModel, RelayModel, Vectors
from stillroom.models.streams import with_end
from stillroom.records import Sampling
from stillroom.serve.counters import Counters
from stillroom.serve.guard import ACCESS
from stillroom.serve.hearing import Heard, Item, Relayed, Written
from stillroom.serve.limits import Limits
from stillroom.serve.orders import Order
from stillroom.serve.refusals import Refusal
from stillroom.serve.replies import RelayedReply, Reply, embedding_reply
from stillroom.serve.responses_replies import ResponsesReply
from stillroom.serve.responses_wire import ResponsesRequest
from stillroom.serve.sending import Dialect, send
from stillroom.serve.served import Served
from stillroom.serve.slots import IsStopped, Slots, Work, result_of
from stillroom.serve.wire import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
)

__all__ = ["Desk"]


class Desk:
    """Answers requests to everything that is mounted."""

    def __init__(self, served: Sequence[Served], limits: Limits, counters: Counters) -> None:
        """Stand over the mounts; each has slots of its own, as each has its own engine."""
        self.limits, self.counters = limits, counters
        self._by_name = {name: one for one in served for name in one.names}
        self._slots = {one.name: Slots(limits, one.lanes) for one in served}

    def end_by(self, moment: float) -> None:
        """End what is answered still at a moment of the monotonic clock: the server stops."""
        for slots in self._slots.values():
            slots.end_by(moment)

    @property
    def names(self) -> list[str]:
        """Every name that a client may ask for."""
        return list(self._by_name)

    def describe(self, name: str) -> dict[str, Any]:
        """Return OpenAI's object of a model, with what it can do.

        Raises:
            Refusal: If there is none of that name.
        """
        if name not in self._by_name:
            raise _unknown_model(name, self.names)
        abilities = self._by_name[name].abilities(name)
        head = {"id": name, "object": "model", "created": 0, "owned_by": "stillroom"}
        return {**head, "abilities": abilities}

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        asked = self._find_writer(body.model)
        order = body.to_order(self.limits)
        if order.passed_on is not None:
            return await self._speak(*asked, order, RelayedReply(body.model), request)
        reply = Reply(body.model, is_chat=True, wants_usage=body.wants_usage)
        return await self._speak(*asked, order, reply, request)

    async def respond(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer POST /v1/responses."""
        asked = self._find_writer(body.model)
        order = body.to_order(self.limits)
        return await self._speak(*asked, order, ResponsesReply(body.echo(order)), request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Answer POST /v1/completions."""
        served, model = self._find_writer(body.model)
        order = body.to_order(self.limits)
        reply = Reply(body.model, is_chat=False, wants_usage=body.wants_usage)
        return await self._answer(served, model, order, reply, request)

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """Answer POST /v1/embeddings."""
        served = self._find(body.model, "embeddings")
        embedder = served.embedder
        if embedder is None:
            raise _unknown_model(body.model, self.names)
        texts = [body.input] if isinstance(body.input, str) else body.input
        self._check_texts(texts, "input")
        if body.dimensions not in {None, embedder.dimensions}:
            raise Refusal(
                400,
                f"vectors have {embedder.dimensions} dimensions",
                code="invalid_dimensions",
                param="dimensions",
            )

        def work(is_stopped: IsStopped) -> Iterator[tuple[Vectors, int]]:
            tokens = sum(embedder.count_tokens(text) for text in texts)
            yield embedder.embed(texts, kind=body.kind), tokens

        vectors, tokens = await result_of(self._slots[served.name].stream(work, request))
        return JSONResponse(embedding_reply(vectors, body.model, tokens, body.encoding_format))

    async def rerank(self, body: RerankRequest, request: Request) -> Response:
        """Answer POST /v1/rerank, in Cohere's and Jina's shape."""
        served = self._find(body.model, "rerank")
        texts = body.texts()
        self._check_texts([body.query], "query")
        self._check_texts(texts, "documents")

        def work(is_stopped: IsStopped) -> Iterator[list[float]]:
            yield _score(served, body.query, texts)

        scores = await result_of(self._slots[served.name].stream(work, request))
        order = sorted(range(len(texts)), key=lambda at: (-scores[at], at))[: body.top_n]
        results = [
            {
                "index": at,
                "relevance_score": scores[at],
                **({"document": {"text": texts[at]}} if body.return_documents else {}),
            }
            for at in order
        ]
        head = {"id": f"rerank-{uuid.uuid4().hex[:24]}", "object": "list", "model": body.model}
        return JSONResponse({**head, "results": results})

    def _find(self, name: str, ability: str) -> Served:
        served = self._by_name.get(name)
        if served is None:
            raise _unknown_model(name, self.names)
        if ability not in served.abilities(name):
            able = [one for one in self.names if ability in self._by_name[one].abilities(one)]
            there = f"; there is: {', '.join(able)}" if able else ""
            raise Refusal(
                404,
                f"'{name}' does not do {ability}{there}",
                code="model_not_found",
                param="model",
            )
        return served

    def _find_writer(self, name: str) -> tuple[Served, TextModel]:
        served = self._find(name, "chat.completions")
        if served.model is None:
            raise _unknown_model(name, self.names)
        return served, served.model

    def _check_texts(self, texts: Sequence[str], param: str) -> None:
        if not 0 < len(texts) <= self.limits.texts or not all(text.strip() for text in texts):
            raise Refusal(
                400,
                f"1 to {self.limits.texts} texts are read at once, none of them empty",
                code="invalid_input",
                param=param,
            )

    async def _speak(
        self, served: Served, model: TextModel, order: Order, reply: Dialect, request: Request
    ) -> Response:
        """Answer an order from documents, by the model alone, or by another server behind it."""
        if order.passed_on is not None:
            return await self._pass_on(served, model, order.passed_on, order, reply, request)
        if served.ask is None or order.model == served.bare_name:
            if order.of_documents:
                raise Refusal(
                    400,
                    f"'{order.model}' shows no passages",
                    code="no_documents",
                    param=order.of_documents,
                )
            return await self._answer(served, model, order, reply, request)
        if order.prompt.schema is not None:
            raise Refusal(
                400,
                f"answers from documents are text; ask '{served.bare_name}' for JSON",
                code="invalid_response_format",
                param=order.schema_field,
            )
        if order.wants_canvas:
            raise _no_canvas()
        return await self._ask(served, model, order, reply, request)

    async def _ask(
        self, served: Served, model: TextModel, order: Order, reply: Dialect, request: Request
    ) -> Response:
        """Answer from documents, each draw by itself."""
        ask, prompt, k = served.ask, order.prompt, order.k or served.k
        if ask is None:
            raise _unknown_model(order.model, self.names)

        def answer(drawn: Sampling, is_stopped: IsStopped) -> Iterator[Item]:
            try:
                yield from ask(
                    prompt.messages,
                    drawn,
                    k,
                    settings=order.settings,
                    access=request.scope.get(ACCESS),
                    is_cancelled=is_stopped,
                )
            except DataError as error:
                if error.problems[0].code == "rag.access-needed":
                    raise Refusal(
                        403, "the key does not say whose documents are asked", code="no_tenant"
                    ) from error
                raise
            except RecipeError as error:
                told = error.problems[0]
                wanted = "answering" if "rag.answering" in told.what else "way"
                raise Refusal(
                    400, f"{told.what}; expected {told.expected}", code=told.code, param=wanted
                ) from error

        def work(is_stopped: IsStopped) -> Iterator[Iterator[Item]]:
            return (answer(drawn, is_stopped) for drawn in order.draws)

        return await self._send(served, model, work, order, reply, request)

    async def _answer(
        self, served: Served, model: TextModel, order: Order, reply: Dialect, request: Request
    ) -> Response:
        """Answer by the model alone: whole texts side by side where it can, streams in turn."""
        prompt, draws = order.prompt, order.draws
        shows = model if isinstance(model, CanvasModel) and order.wants_canvas else None
        if order.wants_canvas and (shows is None or not order.is_streamed):
            raise _no_canvas()

        def work(is_stopped: IsStopped) -> Iterator[Iterator[Item]]:
            if shows is not None:
                return (with_end(shows.stream_canvas(prompt, drawn)) for drawn in draws)
            if order.is_streamed:
                return (with_end(model.stream(prompt, drawn)) for drawn in draws)
            prompts = [prompt] * len(draws)
            whole = model.generate(prompts, draws, is_cancelled=is_stopped)
            return (iter([completion]) for completion in whole)

        return await self._send(served, model, work, order, reply, request)

    async def _pass_on(
        self,
        served: Served,
        model: TextModel,
        sent: Mapping[str, Any],
        order: Order,
        reply: Dialect,
        request: Request,
    ) -> Response:
        """Pass a request with tools on to a backend that speaks of tools itself."""
        if not isinstance(model, RelayModel) or (served.ask and order.model == served.name):
            raise Refusal(
                400,
                f"'{order.model}' calls no tools: its engine is asked for text alone",
                code="no_tools",
                param="tools",
            )

        def work(is_stopped: IsStopped) -> Iterator[Iterator[Item]]:
            if order.is_streamed:
                return iter([model.stream_chat(sent)])
            return iter([iter([model.relay_chat(sent, is_stopped)])])

        return await self._send(served, model, work, order, reply, request)

    async def _send(
        self,
        served: Served,
        model: TextModel,
        work: Work[Iterator[Item]],
        order: Order,
        reply: Dialect,
        request: Request,
    ) -> Response:
        heard: list[Heard] = [Written(model, order.prompt) for _ in order.draws]
        if order.passed_on is not None:
            heard = [Relayed()]
        return await send(
            self._slots[served.name],
            work,
            heard,
            reply,
            request,
            self.counters,
            is_streamed=order.is_streamed,
        )


def _unknown_model(name: str, known: Sequence[str]) -> Refusal:
    """Return what a client is told whose model is not served."""
    there = f"there is: {', '.join(known)}" if known else "there is none"
    return Refusal(
        404,
        f"model {name[:80]!r} is not served here; {there}",
        code="model_not_found",
        param="model",
    )


def _score(served: Served, query: str, texts: Sequence[str]) -> list[float]:
    """Return how well texts fit a query, 0 to 1 of our own models.

    A cross-encoder's log-odds become a probability; an embedder's likeness (-1 to 1) is halved.
    """
    if served.reranker is not None:
        scores = served.reranker.score(query, texts)
        is_odds = not served.reranker.fingerprint.startswith("endpoint:")
        return [_probability(score) for score in scores] if is_odds else scores
    if served.embedder is None:
        raise TypeError(f"{served.name} has nothing to rerank with")
    asked = served.embedder.embed([query], kind="query")[0]
    rows = served.embedder.embed(texts, kind="passage")
    return [(1.0 + float(likeness)) / 2 for likeness in rows @ asked]


def _probability(odds: float) -> float:
    bounded = max(min(odds, 700.0), -700.0)
    return 1.0 / (1.0 + math.exp(-bounded))


def _no_canvas() -> Refusal:
    return Refusal(
        400,
        "a canvas is shown in streams, by models that write in any order",
        code="no_canvas",
        param="stream_options",
    )
