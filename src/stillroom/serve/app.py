"""The app: OpenAI's endpoints over what is served.

Routes only translate; limits, keys and threads have modules of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from stillroom.errors import DataError, RecipeError
from stillroom.models.protocols import CanvasModel, CanvasStep, Vectors
from stillroom.records import Answer, Citation, Completion, Prompt, Sampling
from stillroom.serve.counters import CONTENT_TYPE, Counters, Counting
from stillroom.serve.guard import ACCESS, Guard
from stillroom.serve.job_routes import add_jobs
from stillroom.serve.keys import ApiKey
from stillroom.serve.limits import Limits
from stillroom.serve.refusals import Refusal, add_handlers, explain
from stillroom.serve.replies import DONE, Reply, embedding_reply, event
from stillroom.serve.running import JobRunner
from stillroom.serve.served import Served
from stillroom.serve.slots import IsStopped, Slots, Work, result_of
from stillroom.serve.wire import ChatRequest, CompletionRequest, EmbeddingRequest

__all__ = ["create_app"]

_Item = str | Completion | Answer | CanvasStep


def create_app(
    served: Served | None,
    *,
    api_keys: Sequence[str | ApiKey] = (),
    limits: Limits | None = None,
    jobs: JobRunner | None = None,
) -> FastAPI:
    """Return the API of what is served.

    Args:
        served: Model, embedder and documents; the caller closes them after the app. None serves
            jobs alone.
        api_keys: Keys of which a client must bear one; none lets this machine in without. A key
            says as whom its client asks.
        limits: What a client may ask for at most.
        jobs: Runs jobs of clients, from the app's start to its end.
    """
    bounds = limits or Limits()
    counters = Counters()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if jobs is not None:
            jobs.start()
        yield
        if jobs is not None:
            await jobs.stop()

    app = FastAPI(title="Stillroom", docs_url=None, redoc_url=None, lifespan=lifespan)
    add_handlers(app)
    keys = [ApiKey(key) if isinstance(key, str) else key for key in api_keys]
    app.add_middleware(Guard, api_keys=keys, limits=bounds)
    app.add_middleware(Counting, counters=counters)  # the last one added is the outermost

    _add_health(app, counters, served.names if served is not None else [])
    if served is not None:
        _add_models(app, _Desk(served, bounds, counters))
    if jobs is not None:
        add_jobs(app, jobs)
    return app


def _add_health(app: FastAPI, counters: Counters, names: Sequence[str]) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(counters.render(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in names:
            raise _unknown_model(name, names)
        return _describe(name)


def _add_models(app: FastAPI, desk: _Desk) -> None:

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await desk.chat(body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await desk.complete(body, request)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        return await desk.embed(body, request)


class _Desk:
    """Answers the three kinds of request."""

    def __init__(self, served: Served, limits: Limits, counters: Counters) -> None:
        self.served, self.limits, self.counters = served, limits, counters
        self._slots = Slots(limits)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        served = self.served
        self._check_name(body.model, [served.name, served.bare_name])
        prompt, sampling = body.to_prompt(self.limits), body.to_sampling(self.limits)
        reply = Reply(body.model, is_chat=True)
        if served.ask is None or body.model == served.bare_name:
            wanted = {**body.ask_settings(), **({} if body.k is None else {"k": body.k})}
            if wanted:
                raise Refusal(
                    400,
                    f"'{body.model}' shows no passages",
                    code="no_documents",
                    param=next(iter(wanted)),
                )
            return await self._answer(prompt, sampling, reply, body, request)
        if prompt.schema is not None:
            raise Refusal(
                400,
                f"answers from documents are text; ask '{served.bare_name}' for JSON",
                code="invalid_response_format",
                param="response_format",
            )
        if body.wants_canvas:
            raise _no_canvas()
        ask, k, settings = served.ask, body.k or served.k, body.ask_settings()
        reply = Reply(body.model, is_chat=True, turns_not_read=len(prompt.messages) - 1)

        def work(is_stopped: IsStopped) -> Iterator[_Item]:
            try:
                yield from ask(
                    prompt.messages,
                    sampling,
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

        return await self._send(work, reply, body, request, _count(self.served, prompt), sampling)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        self._check_name(body.model, [self.served.name, self.served.bare_name])
        sampling = body.sampling(self.limits, wanted=body.max_tokens)
        reply = Reply(body.model, is_chat=False)
        return await self._answer(Prompt(text=body.prompt), sampling, reply, body, request)

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        embedder = self.served.embedder
        if embedder is None:
            raise Refusal(404, "no embedder is served", code="model_not_found", param="model")
        self._check_name(body.model, [self.served.embedder_name])
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not 0 < len(texts) <= self.limits.texts or not all(text.strip() for text in texts):
            raise Refusal(
                400,
                f"1 to {self.limits.texts} texts are embedded at once, none of them empty",
                code="invalid_input",
                param="input",
            )
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

        vectors, tokens = await result_of(self._slots.stream(work, request))
        return JSONResponse(embedding_reply(vectors, body.model, tokens, body.encoding_format))

    async def _answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        reply: Reply,
        body: ChatRequest | CompletionRequest,
        request: Request,
    ) -> Response:
        """Answer by the model alone."""
        model = self.served.model
        shows = model if isinstance(model, CanvasModel) and body.wants_canvas else None
        if body.wants_canvas and (shows is None or not body.stream):
            raise _no_canvas()

        def work(is_stopped: IsStopped) -> Iterator[_Item]:
            if shows is not None:
                yield from shows.stream_canvas(prompt, sampling)
            elif body.stream:
                yield from model.stream(prompt, sampling)
            else:
                yield model.generate([prompt], sampling, is_cancelled=is_stopped)[0]

        return await self._send(work, reply, body, request, _count(self.served, prompt), sampling)

    async def _send(
        self,
        work: Work[_Item],
        reply: Reply,
        body: ChatRequest | CompletionRequest,
        request: Request,
        prompt_tokens: int,
        sampling: Sampling,
    ) -> Response:
        """Send what the work gives: event by event, or whole."""
        items = self._slots.stream(work, request)
        heard = _Heard(self.served, prompt_tokens, sampling)
        if not body.stream:
            async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
                async for item in opened:
                    heard.take(item)
            if await request.is_disconnected():
                raise Refusal(499, "the client left", code="client_left")
            self.counters.count_reply(heard.usage, heard.details)
            return JSONResponse(
                reply.whole(
                    heard.text,
                    heard.finish_reason,
                    heard.usage,
                    heard.citations,
                    heard.details,
                )
            )
        # The first item is awaited here, so that what fails at once fails with a status.
        first = await anext(items, None)
        events = _events(first, items, reply, heard, self.counters, wants_usage=body.wants_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    def _check_name(self, name: str, known: Sequence[str]) -> None:
        if name not in known:
            raise _unknown_model(name, known)


class _Heard:
    """What has come of an answer so far."""

    def __init__(self, served: Served, prompt_tokens: int, sampling: Sampling) -> None:
        self._served, self._prompt_tokens, self._sampling = served, prompt_tokens, sampling
        self.text = ""
        self.citations: tuple[Citation, ...] | None = None
        self.details: Mapping[str, Any] = {}
        self._completion: Completion | None = None

    def take(self, item: _Item) -> None:
        if isinstance(item, str):
            self.text += item
            return
        if isinstance(item, CanvasStep):
            return
        if isinstance(item, Answer):
            self.citations, self.details = item.citations, item.details
        self._completion = item.completion if isinstance(item, Answer) else item
        self.text = self._completion.text

    @property
    def usage(self) -> dict[str, int]:
        """Tokens as the engine counted them, or, for its stream, as its tokenizer counts them."""
        done = self._completion
        spent = done.completion_tokens if done else self._served.model.count_tokens(self.text)
        read = (done.prompt_tokens if done else 0) or self._prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": spent, "total_tokens": read + spent}

    @property
    def finish_reason(self) -> str:
        if self._completion is not None:
            return "length" if self._completion.finish_reason == "length" else "stop"
        is_long = self.usage["completion_tokens"] >= self._sampling.max_new_tokens
        return "length" if is_long else "stop"


def _no_canvas() -> Refusal:
    return Refusal(
        400,
        "a canvas is shown in streams, by models that write in any order",
        code="no_canvas",
        param="stream_options",
    )


def _show(item: _Item, reply: Reply) -> Iterator[bytes]:
    """Yield the event of a piece of text or of a step."""
    if isinstance(item, str):
        yield reply.piece(item)
    elif isinstance(item, CanvasStep):
        yield reply.canvas(item)


async def _events(
    first: _Item | None,
    items: AsyncIterator[_Item],
    reply: Reply,
    heard: _Heard,
    counters: Counters,
    *,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    """Yield a reply's events; an error after the first ends the stream with an error object."""
    opening = reply.first()
    if opening:
        yield opening
    async with aclosing(items) as opened:  # type: ignore[type-var]  # ours is a generator
        try:
            if first is not None:
                heard.take(first)
                for said in _show(first, reply):
                    yield said
            async for item in opened:
                heard.take(item)
                for said in _show(item, reply):
                    yield said
        except Exception as error:  # noqa: BLE001  # the status is sent: only an event is left
            yield event(explain(error).to_json())
            return
    counters.count_reply(heard.usage, heard.details)
    if heard.citations is not None:
        yield reply.cited(heard.text, heard.citations, heard.details)
    yield reply.last(heard.finish_reason)
    if wants_usage:
        yield reply.usage(heard.usage)
    yield DONE


def _count(served: Served, prompt: Prompt) -> int:
    """Return the tokens of a prompt's texts; the template's own are not counted."""
    texts = [message.content for message in prompt.messages] or [prompt.text]
    return sum(served.model.count_tokens(text) for text in texts)


def _describe(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "stillroom"}


def _unknown_model(name: str, known: Sequence[str]) -> Refusal:
    return Refusal(
        404,
        f"model {name[:80]!r} is not served here; there is: {', '.join(dict.fromkeys(known))}",
        code="model_not_found",
        param="model",
    )
