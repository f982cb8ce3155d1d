"""The app: OpenAI's endpoints over what is served, and jobs.

Routes only translate; limits, keys, threads and jobs have modules of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from stillroom.serve import answers
from stillroom.serve.counters import CONTENT_TYPE, Counters, Counting
from stillroom.serve.describing import STREAMED, add_description
from stillroom.serve.desk import Desk
from stillroom.serve.forensics_routes import add_forensics
from stillroom.serve.guard import Guard
from stillroom.serve.job_routes import add_jobs
from stillroom.serve.keys import ApiKey
from stillroom.serve.limits import Limits
from stillroom.serve.looking import Looker
from stillroom.serve.refusals import add_handlers
from stillroom.serve.responses_wire import ResponsesRequest
from stillroom.serve.running import JobRunner
from stillroom.serve.served import Served
from stillroom.serve.wire import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    RerankRequest,
)

__all__ = ["create_app"]


def create_app(
    served: Served | Sequence[Served] | None,
    *,
    api_keys: Sequence[str | ApiKey] = (),
    limits: Limits | None = None,
    jobs: JobRunner | None = None,
    looker: Looker | None = None,
    counters: Counters | None = None,
    log: Callable[[str], None] | None = None,
) -> FastAPI:
    """Return the API of what is served.

    Args:
        served: What is mounted, names all different; the caller closes it after the app. None
            serves jobs alone.
        api_keys: Keys of which a client must bear one; none lets this machine in without. A key
            says as whom its client asks.
        limits: What a client may ask for at most.
        jobs: Runs jobs of clients, from the app's start to its end.
        looker: Looks at media that clients send.
        counters: Counts what is done; by default the app's own.
        log: Told every request as one line of JSON, without anything that was said.
    """
    bounds = limits or Limits()
    counters = counters or Counters()

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
    app.add_middleware(Counting, counters=counters, log=log)  # the last one added is the outermost

    mounts = [served] if isinstance(served, Served) else list(served or ())
    desk = app.state.desk = Desk(mounts, bounds, counters)
    _add_health(app, counters, jobs)
    _add_models(app, desk)
    if jobs is not None:
        add_jobs(app, jobs, bounds)
    if looker is not None:
        add_forensics(app, looker, bounds)
    add_description(app, desk.names)
    return app


def _add_health(app: FastAPI, counters: Counters, jobs: JobRunner | None) -> None:
    @app.get("/healthz", responses={200: {"model": answers.Status}})
    async def healthz() -> dict[str, str]:
        """Say that the server lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={200: {"model": answers.Status}})
    async def readyz() -> Response:
        """Say whether the server takes requests: 503 while it stops."""
        if getattr(app.state, "is_stopping", False) or (jobs is not None and jobs.is_stopping):
            return JSONResponse({"status": "stopping"}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        """Say what the server has done, as Prometheus reads it."""
        return Response(counters.render(), media_type=CONTENT_TYPE)


def _add_models(app: FastAPI, desk: Desk) -> None:
    @app.get("/v1/models", responses={200: {"model": answers.ModelList}})
    async def models() -> dict[str, Any]:
        """List what is mounted."""
        return {"object": "list", "data": [desk.describe(name) for name in desk.names]}

    @app.get("/v1/models/{name:path}", responses={200: {"model": answers.ModelRow}})
    async def model(name: str) -> dict[str, Any]:
        """Describe one of what is mounted."""
        return desk.describe(name)

    @app.post(
        "/v1/chat/completions",
        responses={200: {"model": answers.Chat, **STREAMED[200]}},
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a chat turn, from documents or by the model alone, whole or streamed."""
        return await desk.chat(body, request)

    @app.post(
        "/v1/responses",
        responses={200: {"model": answers.Responded, **STREAMED[200]}},
    )
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer a chat turn in items, whole or as typed events; nothing of it is stored."""
        return await desk.respond(body, request)

    @app.post(
        "/v1/completions",
        responses={200: {"model": answers.TextCompletion, **STREAMED[200]}},
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Go on with a raw text, whole or streamed."""
        return await desk.complete(body, request)

    @app.post("/v1/embeddings", responses={200: {"model": answers.Embeddings}})
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Turn texts into vectors."""
        return await desk.embed(body, request)

    @app.post("/v1/rerank", responses={200: {"model": answers.Reranked}})
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Order documents by how well they fit a query."""
        return await desk.rerank(body, request)
