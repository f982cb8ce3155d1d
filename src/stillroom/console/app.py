"""ASGI app of the console: pages, static assets and the HTTP API behind one authentication."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from stillroom.console.auth import ConsoleAuth
from stillroom.console.page_context import PageContext, PageLink
from stillroom.console.pages import ask, jobs, models, records
from stillroom.console.pages import records as proof
from stillroom.errors import DataError, MissingExtraError, Problem, RecipeError, StillroomError
from stillroom.serve.app import create_app
from stillroom.serve.errors import ApiError, to_api_error
from stillroom.serve.media_check import MediaCheckService

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stillroom.provenance.signing import Trust
    from stillroom.rag.index.view import AccessContext
    from stillroom.serve.jobs.recipe_policy import RecipePolicy
    from stillroom.serve.jobs.runner import JobRunner

__all__ = [
    "create_console",
    "run_console",
]


_PAGES = (
    PageLink("/ask", "Ask", "Answers from your documents, with citations"),
    PageLink("/make", "Make", "Create jobs and follow them"),
    PageLink("/records", "Records", "Review generated records, kept and dropped"),
    PageLink("/models", "Models", "Compare checkpoints, and chat with two"),
    PageLink("/merge", "Merge", "Conflicts of parents, and the loss between them"),
    PageLink("/diffusion", "Diffusion", "Sample a diffusion model step by step"),
    PageLink("/forensics", "Forensics", "Check the origin of an image or a video"),
    PageLink("/lineage", "Lineage", "Trace artifacts back to their sources"),
    PageLink("/proof", "Proof", "Who signed a run, what was replayed, what is open"),
)
_JUDGMENTS_PATH = "/v1/judgments"
_MODEL_PATHS = (
    "/v1/chat/",
    "/v1/responses",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/traces",
    "/v1/answers/",
    _JUDGMENTS_PATH,
)


def create_console(
    folder: Path,
    *,
    key: str,
    access: AccessContext | None = None,
    runner: JobRunner | None = None,
    media_check: MediaCheckService | None = None,
    trust: Trust | None = None,
    names: frozenset[str] = frozenset(),
) -> ASGIApp:
    """Return the console over a folder.

    Nothing outside ``folder`` is read; ``key`` opens the console. Without ``runner`` there are no
    new jobs; by default the media check has neither detectors nor trust lists, and nobody's
    signatures of runs are trusted. ``names`` are accepted host names besides the three loopback
    names.
    """
    context_holder: list[PageContext] = []

    async def refuse(request: Request, status: int, message: str) -> Response:
        return await context_holder[0].refuse(request, status, message)

    door = ConsoleAuth(_refuse_unbuilt, key=key, refuse=refuse, names=names)
    context = PageContext(folder.absolute(), token=door.token, pages=_PAGES, access=access)
    context_holder.append(context)
    checker = media_check or MediaCheckService()
    api = create_app(None, jobs=runner, media_check=checker, trust=trust)
    door.app = _ConsoleApp(context, _build_pages(context, api, runner, checker, trust), api)
    return door


async def _refuse_unbuilt(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the console has not started yet")


def _build_pages(
    context: PageContext,
    api: FastAPI,
    runner: JobRunner | None,
    media_check: MediaCheckService,
    trust: Trust | None,
) -> Starlette:
    async def home(request: Request) -> Response:
        return RedirectResponse("/ask", 303)

    async def on_error(request: Request, error: Exception) -> Response:
        return context.explain(request, error)

    async def on_missing(request: Request, error: Exception) -> Response:
        problem = Problem(
            f"there is no page {request.url.path[:200]}", "console.no-page", next="see the menu"
        )
        return context.page(request, "problem.html", status=404, problems=[problem])

    async def on_method(request: Request, error: Exception) -> Response:
        problem = Problem(
            f"{request.url.path[:200]} does not support {request.method}", "console.method"
        )
        return context.page(request, "problem.html", status=405, problems=[problem])

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with api.router.lifespan_context(api):
            yield
        context.close()

    static = StaticFiles(packages=[("stillroom.console", "static")])
    return Starlette(
        routes=[
            Route("/", home),
            *ask.ask_routes(context),
            *jobs.job_routes(context, runner),
            *records.record_routes(context),
            *models.model_routes(context),
            *models.merge_routes(context),
            *models.diffusion_routes(context),
            *models.forensics_routes(context, media_check),
            *records.lineage_routes(context),
            *proof.proof_routes(context, trust),
            *ask.source_routes(context),
            Mount("/static", static),
        ],
        exception_handlers={
            404: on_missing,
            405: on_method,
            StillroomError: on_error,
            ApiError: on_error,
            Exception: on_error,
        },
        lifespan=lifespan,
    )


class _ConsoleApp:
    """Routes model requests to the model named by ``at``, and job requests to the jobs API."""

    def __init__(self, context: PageContext, pages: ASGIApp, api: ASGIApp) -> None:
        self.context, self.pages, self.api = context, pages, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.pages(scope, receive, send)
            return
        if not scope["path"].startswith(_MODEL_PATHS):
            await self.api(_strip_credentials(scope), receive, send)
            return
        model_name = parse_qs(scope["query_string"].decode("latin-1")).get("at", [""])[0]
        holding = self.context.models.use(model_name)
        try:
            if scope["path"] == _JUDGMENTS_PATH:
                self.context.check_writable()
            opened = await self.context.run_in_thread(holding.__enter__)
        except Exception as error:  # noqa: BLE001  # sent in the format of the API
            refusal = to_api_error(error)
            await JSONResponse(refusal.to_json(), refusal.status)(scope, receive, send)
            return
        try:
            await opened.app(_strip_credentials(scope), receive, send)
        finally:
            holding.__exit__(None, None, None)


def _strip_credentials(scope: Scope) -> Scope:
    """Return a request without credentials, which ``ConsoleAuth`` has already checked."""
    removed = {b"authorization", b"cookie", b"host", b"origin"}
    headers = [(key, value) for key, value in scope["headers"] if key not in removed]
    return {**scope, "headers": [*headers, (b"host", b"localhost")]}


_KEY_BYTES = 24
_DRAIN_TIMEOUT_S = 10


def run_console(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 8152,
    *,
    access: AccessContext | None = None,
    policy: RecipePolicy | None = None,
    media_check: MediaCheckService | None = None,
    trust: Trust | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Serve the pages of a folder until interrupted.

    Raises:
        DataError: If the folder does not exist.
        RecipeError: If the host can be reached from other machines.
        ResourceError: If the port is in use.
        MissingExtraError: If fastapi or uvicorn is not installed.
    """
    from stillroom.serve.jobs.processes import describe_sandbox_gap
    from stillroom.serve.server import format_url, listen, run_app
    from stillroom.serve.views.folder import is_artifact

    _check_arguments(folder, host)
    with MissingExtraError.guard("fastapi and uvicorn", "console", "The console"):
        from stillroom.serve.jobs.runner import JobRunner
        from stillroom.serve.workspace import Workspace
    key = secrets.token_urlsafe(_KEY_BYTES)
    tell = say or (lambda line: None)
    with ExitStack() as opened:
        listening = opened.enter_context(listen(host, port))
        runner = None
        if not is_artifact(folder):
            workspace = opened.enter_context(Workspace(folder).open())
            runner = JobRunner(workspace, policy=policy)
        names = frozenset({host.lower()})
        app = create_console(
            folder,
            key=key,
            access=access,
            runner=runner,
            media_check=media_check,
            trust=trust,
            names=names,
        )
        tell(f"the console of {folder}: {format_url(listening, host)}/?key={key}")
        if gap := describe_sandbox_gap():
            tell(gap)
        tell("anyone with the key has access until the console is stopped (Ctrl+C)")
        on_stop = runner.begin_stop if runner is not None else lambda: None
        run_app(app, listening, drain_s=_DRAIN_TIMEOUT_S, on_stop=on_stop)


def _check_arguments(folder: Path, host: str) -> None:
    """Refuse a missing folder, and a host that other machines can reach."""
    from stillroom.serve.server import is_loopback

    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder",
            code="data.missing",
            expected="the folder that contains your runs",
            next="stillroom console .",
        )
    if not is_loopback(host):
        raise RecipeError(
            f"the console could be reached from other machines at {host}",
            code="console.host",
            where="--host",
            expected="a loopback address such as 127.0.0.1",
            next="forward the port: ssh -L 8152:127.0.0.1:8152 THIS-MACHINE",
        )
