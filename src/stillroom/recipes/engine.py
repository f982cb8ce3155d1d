"""Execution engine settings: local processes or a Ray cluster.

The engine is not part of the resolved recipe: a run may be started on one machine and resumed on a
cluster with the same recipe and the same bytes. The events record which engine did the work.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from stillroom.errors import RecipeError
from stillroom.recipes.settings import Settings

__all__ = ["ENGINE", "EngineChoice", "RaySettings"]

_NAMES = ("local", "ray")


class RaySettings(Settings):
    """Ray cluster settings."""

    address: str | None = Field(
        None,
        min_length=1,
        description="address of a running cluster (host:6379, or auto for the one that this "
        "machine is part of); null starts one on this machine for the job",
    )
    num_workers: int | None = Field(
        None, ge=1, le=10_000, description="number of workers; by default one per cluster core"
    )
    num_gpus: float = Field(0, ge=0, description="GPUs per worker; may be a fraction such as 0.5")
    block_size: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="records, documents or files per task; by default chosen by the work; does not "
        "change the result",
    )


class EngineChoice(Settings):
    """Execution engine: this machine, or a Ray cluster.

    Written as ``local``, ``ray``, or ``{ray: {...}}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ray: RaySettings | None = Field(
        default=None, exclude=True, description="run on a Ray cluster; null runs on this machine"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in _NAMES:
            raise RecipeError(
                f"'{value}' is not an engine",
                code="recipe.value",
                expected="local, ray, or settings of ray",
                next="write engine: ray, or engine: {ray: {address: auto}}",
            )
        return {} if value == "local" else {"ray": {}}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Include the short form in the schema."""
        group = handler.resolve_ref_schema(handler(schema))
        full = {key: group.pop(key) for key in list(group) if key not in {"description", "title"}}
        group["anyOf"] = [{"enum": list(_NAMES), "type": "string"}, full]
        return group


ENGINE: Any = Field(
    default_factory=EngineChoice,
    exclude=True,
    description="execution engine: local, ray, or {ray: {address: ...}}; does not change the "
    "result, so the resolved recipe omits it",
)
"""The field ``engine`` of every kind with distributable work."""
