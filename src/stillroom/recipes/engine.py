"""Execution engine settings: local processes or a Ray cluster.

So it is no part of the resolved recipe: a run may be begun on one machine and gone on with on a
cluster, and its recipe and its bytes are the same. Which engine did the work is in the events.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from stillroom.errors import RecipeError
from stillroom.recipes.settings import Settings

__all__ = ["ENGINE", "EngineChoice", "RaySettings", "engine_error"]

_NAMES = ("local", "ray")


class RaySettings(Settings):
    """A Ray cluster, and how much of it is used."""

    address: str | None = Field(
        None,
        min_length=1,
        description="a running cluster's address (host:6379, or auto for the one this machine is "
        "part of); null starts one on this machine for the job",
    )
    num_workers: int | None = Field(
        None, ge=1, le=10_000, description="workers; default one for each of the cluster's cores"
    )
    num_gpus: float = Field(0, ge=0, description="GPUs of each worker; a share, as 0.5, is allowed")
    block_size: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="records, documents or files of one task; default what fits the work; never "
        "changes what is made",
    )


class EngineChoice(Settings):
    """Where the work is done: in this process and its own, or on a Ray cluster.

    Written ``local``, ``ray``, or ``{ray: {...}}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ray: RaySettings | None = Field(
        default=None, exclude=True, description="work on a Ray cluster; null works on this machine"
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
        """Describe the short form, too."""
        group = handler.resolve_ref_schema(handler(schema))
        whole = {key: group.pop(key) for key in list(group) if key not in {"description", "title"}}
        group["anyOf"] = [{"enum": list(_NAMES), "type": "string"}, whole]
        return group


ENGINE: Any = Field(
    default_factory=EngineChoice,
    exclude=True,
    description="where the work is done: local, ray, or {ray: {address: ...}}; changes no byte of "
    "what is made, so the resolved recipe leaves it out",
)
"""The field ``engine`` of every kind whose work an engine can spread."""


def engine_error(why: str) -> RecipeError:
    """Return the error of a recipe whose work cannot be spread."""
    return RecipeError(
        f"engine: ray would be ignored: {why}",
        code="recipe.engine",
        where="engine",
        expected="engine: local",
        next="leave engine out",
    )
