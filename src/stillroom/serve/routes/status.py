"""Health checks (``/healthz``, ``/readyz``) and ``/metrics``; the first two need no key."""

from __future__ import annotations

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from stillroom.serve.routing import RouteTable, ServerContext, StrictModel

__all__ = ["ServerStatus", "add_routes"]


class ServerStatus(StrictModel):
    """Status of the server."""

    status: str


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes."""

    @table.add("GET", "/healthz", "public", reply=ServerStatus)
    async def healthz() -> dict[str, str]:
        """Report that the server is alive."""
        return {"status": "ok"}

    @table.add("GET", "/readyz", "public", reply=ServerStatus)
    async def readyz() -> Response:
        """Report whether the server accepts requests: 503 during shutdown, or without documents."""
        is_stopping = server.jobs is not None and server.jobs.is_stopping
        if is_stopping or getattr(table.app.state, "is_stopping", False):
            return JSONResponse({"status": "stopping"}, 503, {"Retry-After": "5"})
        if not server.models.is_ready():
            return JSONResponse({"status": "no documents"}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ready"})

    @table.add("GET", "/metrics", "metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics in the Prometheus text format."""
        return Response(server.counters.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
