"""``/v1/models``: names that clients may request, and what each answers."""

from __future__ import annotations

from typing import Any, Literal

from stillroom.serve.routing import RouteTable, ServerContext, StrictModel

__all__ = ["ModelInfo", "ModelList", "add_routes"]


class ModelInfo(StrictModel):
    """Name that clients may request."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    abilities: list[str]


class ModelList(StrictModel):
    """List of all model names."""

    object: Literal["list"]
    data: list[ModelInfo]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the routes."""
    service = server.models

    @table.add("GET", "/v1/models", "models", reply=ModelList)
    async def models() -> dict[str, Any]:
        """List the served models."""
        return {"object": "list", "data": [service.describe(name) for name in service.names]}

    @table.add("GET", "/v1/models/{name:path}", "models", reply=ModelInfo)
    async def model(name: str) -> dict[str, Any]:
        """Describe one served model."""
        return service.describe(name)
