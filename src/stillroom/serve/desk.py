"""The desk: what becomes of a request to a model, an embedder or a reranker.

Finds who is asked, says what they are asked in the floor's own nouns, and sends what comes: whole
or event by event. Waiting and threads are the slots', shapes are the replies'.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stillroom.errors import DataError, RecipeError
from stillroom.models import TextModel
from stillroom.models.protocols import CanvasModel, RelayModel, Vectors
from stillroom.models.streams import with_end
from stillroom.records import Prompt, Sampling
from stillroom.serve.counters import CLOCK, Clock, Counters
from stillroom.serve.guard import ACCESS
from stillroom.serve.hearing import (
    Heard,
    Item,
    Said,
    relay_events,
    reply_events,
    sum_usage,
)
from stillroom.serve.limits import Limits
from stillroom.serve.refusals import Refusal, client_left
from stillroom.serve.replies import Reply, embedding_reply
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
        served, model = self._find_writer(body.model)
        if body.speaks_of_tools:
            return await self._relay(served, model, body, request)
        prompt, draws = body.to_prompt(self.limits), body.to_draws(self.limits)
        if served.ask is None or body.model == served.bare_name:
            wanted = {**body.ask_settings(), **({} if body.k is None else {"k": body.k})}
            if wanted:
                raise Refusal(
                    400,
                    f"'{body.model}' shows no passages",
                    code="no_documents",
                    param=next(iter(wanted)),
                )
            reply = Reply(body.model, is_chat=True)
            return await self._answer(served, model, prompt, draws, reply, body, request)
        if prompt.schema is not None:
            raise Refusal(
                400,
                f"answers from documents are text; ask '{served.bare_name}' for JSON",
                code="invalid_response_format",
                param="response_format",
            )
        if body.wants_canvas:
            raise _no_canvas()
        return await self._ask(served, model, prompt, draws, body, request)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Answer POST /v1/completions."""
        served, model = self._find_writer(body.model)
        draws = body.to_draws(self.limits)
        reply, prompt = Reply(body.model, is_chat=False), Prompt(text=body.text)
        return await self._answer(served, model, prompt, draws, reply, body, request)

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

    async def _ask(
        self,
        served: Served,
        model: TextModel,
        prompt: Prompt,
        draws: Sequence[Sampling],
        body: ChatRequest,
        request: Request,
    ) -> Response:
        """Answer from documents, each draw by itself."""
        ask, k, settings = served.ask, body.k or served.k, body.ask_settings()
        if ask is None:
            raise _unknown_model(body.model, self.names)
        reply = Reply(body.model, is_chat=True, turns_not_read=len(prompt.messages) - 1)

        def answer(drawn: Sampling, is_stopped: IsStopped) -> Iterator[Item]:
            try:
                yield from ask(
                    prompt.messages,
                    drawn,
                    k,
                    settings=settings,
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
            return (answer(drawn, is_stopped) for drawn in draws)

        heard = [Heard(model, prompt) for _ in draws]
        return await self._send(self._slots[served.name], work, reply, body, request, heard)

    async def _answer(
        self,
        served: Served,
        model: TextModel,
        prompt: Prompt,
        draws: Sequence[Sampling],
        reply: Reply,
        body: ChatRequest | CompletionRequest,
        request: Request,
    ) -> Response:
        """Answer by the model alone: whole texts side by side where it can, streams in turn."""
        shows = model if isinstance(model, CanvasModel) and body.wants_canvas else None
        if body.wants_canvas and (shows is None or not body.stream):
            raise _no_canvas()

        def work(is_stopped: IsStopped) -> Iterator[Iterator[Item]]:
            if shows is not None:
                return (with_end(shows.stream_canvas(prompt, drawn)) for drawn in draws)
            if body.stream:
                return (with_end(model.stream(prompt, drawn)) for drawn in draws)
            prompts = [prompt] * len(draws)
            whole = model.generate(prompts, draws, is_cancelled=is_stopped)
            return (iter([completion]) for completion in whole)

        heard = [Heard(model, prompt) for _ in draws]
        return await self._send(self._slots[served.name], work, reply, body, request, heard)

    async def _send(
        self,
        slots: Slots,
        work: Work[Iterator[Item]],
        reply: Reply,
        body: ChatRequest | CompletionRequest,
        request: Request,
        heard: Sequence[Heard],
    ) -> Response:
        """Send what the work gives of each text: event by event, or whole."""
        clock: Clock | None = request.scope.get(CLOCK)

        def listen(is_stopped: IsStopped) -> Iterator[Said]:
            """Hear on the work's own thread, where counting tokens may take its time."""
            for at, items in enumerate(work(is_stopped)):
                for item in items:
                    heard[at].take(item)
                    yield at, item
                if is_stopped():
                    return
                begun = time.perf_counter()
                heard[at].end()
                if clock is not None:  # counting is our own work, though the engine is asked
                    clock.engine_s -= time.perf_counter() - begun
                yield at, None

        items = slots.stream(listen, request)
        if not body.stream:
            async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
                async for _ in opened:
                    pass
            if any(one.spent is None for one in heard):
                raise client_left()
            usage = sum_usage(heard)
            self.counters.count_reply(usage, *(one.details for one in heard))
            choices = [
                reply.choice(at, one.text, one.spent.finish_reason, one.citations, one.details)
                for at, one in enumerate(heard)
                if one.spent is not None
            ]
            return JSONResponse(reply.whole(choices, usage))
        # The first item is awaited here, so that what fails at once fails with a status.
        first = await anext(items, None)
        events = reply_events(
            first, items, reply, heard, self.counters, wants_usage=body.wants_usage
        )
        return StreamingResponse(events, media_type="text/event-stream")

    async def _relay(
        self, served: Served, model: TextModel, body: ChatRequest, request: Request
    ) -> Response:
        """Pass a request with tools on to a backend that speaks of tools itself."""
        if not isinstance(model, RelayModel) or (served.ask and body.model == served.name):
            raise Refusal(
                400,
                f"'{body.model}' calls no tools: its engine is asked for text alone",
                code="no_tools",
                param="tools",
            )
        sent = body.to_relay(self.limits)
        slots = self._slots[served.name]
        if not body.stream:

            def once(is_stopped: IsStopped) -> Iterator[dict[str, Any]]:
                yield model.relay_chat(sent, is_stopped)

            answer = await result_of(slots.stream(once, request))
            return JSONResponse({**answer, "model": body.model})

        def chunks(is_stopped: IsStopped) -> Iterator[dict[str, Any]]:
            yield from model.stream_chat(sent)

        items = slots.stream(chunks, request)
        first = await anext(items, None)
        return StreamingResponse(
            relay_events(first, items, body.model), media_type="text/event-stream"
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
