"""FastAPI application of the server, and an LRU cache of applications for models of a folder.

Each route is a file of ``routes``; limits, keys, threads and jobs have modules of their own.

A run or an index answers from its documents, a checkpoint without documents; all are opened like
mounts. Each model gets its own API (``create_app`` over one ``ServedModel``), so limits and slots
apply to each model separately.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.types import ASGIApp

from stillroom.errors import DataError
from stillroom.flow.opening import find_index
from stillroom.provenance.signing import Trust
from stillroom.provenance.text_marks import TextMarker
from stillroom.serve.access import ApiKey, RequestLimits
from stillroom.serve.errors import JsonReply, add_error_handlers
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.media_check import MediaCheckService
from stillroom.serve.middleware.auth import AuthMiddleware
from stillroom.serve.middleware.concurrency import ResourceLRU
from stillroom.serve.middleware.metrics import MetricsMiddleware, ServerMetrics
from stillroom.serve.mounts import Mount, ServedModel, open_mount
from stillroom.serve.openai.service import ModelService
from stillroom.serve.routes import ROUTES
from stillroom.serve.routing import RouteTable, ServerContext, add_openapi
from stillroom.serve.views.folder import read_folder_artifact, resolve_name, to_name
from stillroom.serve.views.sources import has_tenants

if TYPE_CHECKING:
    from stillroom.rag.index.view import AccessContext

__all__ = [
    "ModelCache",
    "OpenModel",
    "create_app",
]


def create_app(
    served: ServedModel | Sequence[ServedModel] | None,
    *,
    api_keys: Sequence[str | ApiKey] = (),
    limits: RequestLimits | None = None,
    jobs: JobRunner | None = None,
    media_check: MediaCheckService | None = None,
    trust: Trust | None = None,
    counters: ServerMetrics | None = None,
    log: Callable[[str], None] | None = None,
    marker: TextMarker | None = None,
) -> FastAPI:
    """Return the HTTP API over the served models.

    Args:
        served: Mounts with distinct names; the caller closes them after the app. None serves jobs
            alone.
        api_keys: Accepted keys with their access; without keys only this machine is served.
        limits: Request limits.
        jobs: Job runner, started and stopped with the app.
        media_check: Media check of ``POST /v1/forensics/check``.
        trust: Whose signatures of runs are trusted, for ``GET /v1/proof``; by default nobody's.
        counters: Metrics; by default the app's own.
        log: Receives one line of JSON for each request, without any content.
        marker: Signs the content credential in every generated text; None sends clean text.
    """
    bounds = limits or RequestLimits()
    counters = counters or ServerMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if jobs is not None:
            jobs.start()
        yield
        if jobs is not None:
            await jobs.stop()

    app = FastAPI(
        title="Stillroom",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        default_response_class=JsonReply,
    )
    add_error_handlers(app)
    table = RouteTable(app)
    keys = [ApiKey(key) if isinstance(key, str) else key for key in api_keys]
    app.add_middleware(AuthMiddleware, api_keys=keys, limits=bounds, find_rule=table.find)
    app.add_middleware(
        MetricsMiddleware, counters=counters, log=log
    )  # the middleware added last is the outermost

    mounts = [served] if isinstance(served, ServedModel) else list(served or ())
    service = app.state.desk = ModelService(mounts, bounds, counters, marker)
    server = ServerContext(bounds, counters, service, jobs, media_check, trust or Trust())
    for module in ROUTES:
        module.add_routes(table, server)
    table.check()
    add_openapi(app, service.names)
    return app


@dataclass(frozen=True, slots=True)
class OpenModel:
    """Open model: the mount, and its API."""

    app: ASGIApp
    served: ServedModel


class ModelCache:
    """LRU cache of open runs and checkpoints of a folder, at most ``max_open`` at once."""

    def __init__(
        self,
        root: Path,
        access: AccessContext | None = None,
        *,
        limits: RequestLimits | None = None,
        max_open: int = 3,
        references: Callable[[], set[str]] | None = None,
    ) -> None:
        """Open no model yet.

        Args:
            root: Served folder.
            access: Access of the client to indexes with tenants.
            limits: Request limits of each open model.
            max_open: Number of models kept open.
            references: Returns the ``hub:`` references that may be opened as well.
        """
        self.root, self.access = root, access
        self.limits = limits or RequestLimits()
        self._references = references or set
        self._open = ResourceLRU[str, OpenModel](max_open, "models")

    def open(self, name: str) -> ServedModel:
        """Return the open model of a name, opening it if needed; blocks while weights are read.

        Raises:
            DataError: If the name is no run, index or checkpoint, or lies outside the folder.
            CheckpointError: If its model cannot be read.
            ResourceError: If all open models are in use.
        """
        with self.use(name) as opened:
            return opened.served

    @contextmanager
    def use(self, name: str) -> Iterator[OpenModel]:
        """Keep the model of a name open until the body ends; raises like ``open``."""
        if not name.startswith("hub:"):  # "a", "./a" and a link to it name one model
            name = to_name(self.root, resolve_name(self.root, name)) or name
        with self._open.use(name, partial(self._serve, name)) as opened:
            yield opened

    def close(self) -> None:
        """Close all open models."""
        self._open.close()

    @contextmanager
    def _serve(self, name: str) -> Iterator[OpenModel]:
        if name.startswith("hub:"):
            mount, access = self._find_reference(name), None
        else:
            mount, access = self._find(name)
        with open_mount(mount, access=access) as served:
            yield OpenModel(create_app(served, limits=self.limits), served)

    def _find_reference(self, name: str) -> Mount:
        if name not in self._references():
            raise DataError(
                f"{name!r:.200} is not a model of this folder",
                code="data.missing",
                expected="a checkpoint of the folder, or one that an artifact in it refers to",
                next="open the list of models",
            )
        return Mount(name, name)

    def _find(self, name: str) -> tuple[Mount, AccessContext | None]:
        """Return how a name is mounted, and the access of its client."""
        artifact, folder = read_folder_artifact(self.root, name), resolve_name(self.root, name)
        is_read = artifact.is_run or artifact.kind == "index"
        if not is_read and artifact.kind != "checkpoint":
            raise DataError(
                f"{name!r:.200} is of kind {artifact.kind}, which does not answer",
                code="data.wrong-kind",
                expected="a run, an index or a checkpoint",
                next="open the list of models",
            )
        is_guarded = is_read and has_tenants(find_index(folder))
        return Mount(folder.resolve().name, str(folder)), self.access if is_guarded else None
