"""Recipe and Settings base classes, and the types of settings: sizes, durations, secrets.

Defines how settings are written and parsed, not their position in a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from stillroom.errors import RecipeError
from stillroom.registry.method import MAX_INT, CheckedModel

__all__ = [
    "DISTINCT",
    "ENGINE",
    "REFERENCE_FORMAT",
    "Destination",
    "Duration",
    "EngineChoice",
    "RaySettings",
    "Recipe",
    "Reference",
    "Secret",
    "SettingFormat",
    "Settings",
    "Size",
    "check_references",
    "choose_by_key",
    "resolve_references_in",
]


class Settings(CheckedModel):
    """A group of settings within a recipe: frozen, no unknown keys, no infinite numbers."""

    model_config = ConfigDict(validate_default=True)


def _refuse_repeats(values: Sequence[Any]) -> Sequence[Any]:
    for number, value in enumerate(values):
        if value in values[:number]:
            shown = getattr(value, "method_name", lambda value=value: value)()
            raise ValueError(f"listed twice: {shown}")
    return values


DISTINCT = AfterValidator(_refuse_repeats)
"""Annotation of a list of settings whose items must differ."""


def choose_by_key(
    groups: Mapping[str, str], message: str, default: str | None = None
) -> Discriminator:
    """Return the discriminator of a union of groups of settings by the key that is written.

    Args:
        groups: Class name of the group, which is its ``Tag``, by a key that it alone has.
        message: What is expected, where no group can be found.
        default: The group of settings without such a key; None refuses them.
    """

    def find_tag(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return type(value).__name__
        return next((group for key, group in groups.items() if key in value), default)

    return Discriminator(find_tag, custom_error_type="group", custom_error_message=message)


class Recipe(Settings):
    """Base class of recipes (config, pipeline file); a room's adds its ``kind`` and settings."""

    version: Literal[1] = Field(1, description="version of the recipe grammar")
    kind: str = Field(description="job kind")
    seed: int = Field(0, ge=0, le=MAX_INT, description="random seed; same bytes on one machine")


@dataclass(frozen=True)
class SettingFormat:
    """Syntax of a value in the commented recipe; NAME is a placeholder for the setting's name."""

    hint: str
    placeholder: str


_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**i for i, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**i for i, letter in enumerate("kmgt", 1)},
}
_TIME_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)")


def _parse_quantity(units: dict[str, Any], expected: str, value: object) -> object:
    """Parse a number with a unit; other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise RecipeError(f"{value!r} has no known unit", code="recipe.value", expected=expected)
    number = float(match[1]) * unit if "." in match[1] else int(match[1]) * unit
    return round(number) if units is _SIZE_UNITS else float(number)


Size = Annotated[
    int,
    BeforeValidator(partial(_parse_quantity, _SIZE_UNITS, "a size as 500MB, 2GB or 1.5GiB")),
    Field(ge=0),
    SettingFormat("bytes, as 500MB or 2GiB", "1GB"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {
                    "type": "string",
                    "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]?[iI]?[bB])?\s*$",
                },
            ]
        }
    ),
]
"""Bytes; recipes accept ``2GB`` (10**9) or ``2GiB`` (2**30)."""

Duration = Annotated[
    float,
    BeforeValidator(partial(_parse_quantity, _TIME_UNITS, "a time as 30s, 5min or 2h")),
    Field(ge=0),
    SettingFormat("seconds, as 30s or 5min", "30s"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(ms|s|min|m|h|d)?\s*$"},
            ]
        }
    ),
]
"""Seconds; recipes accept ``30s``, ``5min`` or ``2h``."""
_FOLDER: ContextVar[Path | None] = ContextVar("stillroom_recipe_folder", default=None)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_HUB = re.compile(r"hub:[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")


@contextmanager
def resolve_references_in(folder: Path | None) -> Iterator[None]:
    """Resolve relative paths of ``Reference`` values against ``folder`` in the context."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


_REFERENCE_CHECK: ContextVar[Callable[[str], None] | None] = ContextVar(
    "stillroom_check", default=None
)


@contextmanager
def check_references(check: Callable[[str], None]) -> Iterator[None]:
    """Call ``check`` with every ``Reference`` as written, in the context.

    ``check`` raises a RecipeError for a reference that may not be used.
    """
    token = _REFERENCE_CHECK.set(check)
    try:
        yield
    finally:
        _REFERENCE_CHECK.reset(token)


def _resolve_reference(value: str) -> str:
    check = _REFERENCE_CHECK.get()
    if check is not None:
        check(value)
    if not value or "\0" in value:
        raise RecipeError(
            "a reference is empty" if not value else "a reference holds a NUL character",
            code="recipe.reference",
            expected="a path or hub:org/name[@revision]",
        )
    if value.startswith("hub:") and not _HUB.fullmatch(value):
        raise RecipeError(
            f"{value!r} is not a reference",
            code="recipe.reference",
            expected="hub:org/name[@revision]",
        )
    if value.startswith("job:"):
        raise RecipeError(
            f"{value!r} is not a reference: jobs have folders, not ids",
            code="recipe.reference",
            expected="the job's folder, or {from: STEP} within a flow",
            next="stillroom list jobs FOLDER",
        )
    folder = _FOLDER.get()
    if _SCHEME.match(value):
        return value
    path = Path(value).expanduser() if value.startswith("~") else Path(value)
    resolved = os.path.normpath(folder.absolute() / path) if folder else str(path)
    if not resolved.isascii() and any("\ud800" <= letter <= "\udfff" for letter in resolved):
        raise RecipeError(
            f"{resolved!a} is not valid UTF-8, which recipes and artifacts are written in",
            code="recipe.reference",
            expected="a path whose names are UTF-8",
            next="rename the file or folder, or use a link with another name",
        )
    return resolved


REFERENCE_FORMAT = SettingFormat("a path or hub:org/name[@revision]", "path/to/NAME")

Reference = Annotated[
    str,
    AfterValidator(_resolve_reference),
    REFERENCE_FORMAT,
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A path or ``hub:org/name[@revision]``.

Relative paths are resolved against the folder of the recipe; anything with a scheme stays
unchanged.
"""

Destination = Annotated[
    str,
    AfterValidator(_resolve_reference),
    SettingFormat("a path", "path/to/NAME"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A path, written like a ``Reference``, that a job creates if it does not exist."""
_ENVIRONMENT = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class Secret:
    """A secret that a recipe names but does not contain: ``${env:NAME}``.

    Dumps and prints show the reference only; ``reveal`` reads the value on demand.
    """

    __slots__ = ("reference",)

    def __init__(self, reference: str) -> None:
        """Parse the reference text.

        Raises:
            RecipeError: If it is not of the form ``${env:NAME}``; the text is not shown.
        """
        if not isinstance(reference, str) or not _ENVIRONMENT.fullmatch(reference):
            raise RecipeError(
                "a secret must not be written in a recipe",
                code="recipe.secret",
                expected="the name of an environment variable, as ${env:NAME}",
                next="export the secret as a variable and write ${env:NAME} here",
            )
        self.reference = reference

    def reveal(self) -> str:
        """Return the secret itself.

        Raises:
            RecipeError: If the environment variable is not set.
        """
        name = self.reference[len("${env:") : -1]
        value = os.environ.get(name)
        if value is None:
            raise RecipeError(
                f"the environment variable {name} is not set",
                code="recipe.secret",
                expected=f"the secret in {name}",
                next=f"export {name}=... before the command",
            )
        return value

    def __repr__(self) -> str:
        return f"Secret({self.reference!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate the reference text and serialize to it."""
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda secret: secret.reference, return_schema=core_schema.str_schema()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the reference text."""
        return {"type": "string", "pattern": f"^{_ENVIRONMENT.pattern}$"}


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
