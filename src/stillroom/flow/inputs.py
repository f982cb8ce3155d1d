"""Inputs of a recipe: the check that they exist, and the digest of each for the step cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from stillroom.errors import DataError, Problem
from stillroom.flow.recipe import FlowRecipe
from stillroom.objects import is_store_address, list_objects
from stillroom.provenance import ARTIFACT_FILE, digest_file, digest_json, read_artifact
from stillroom.recipes import Recipe, list_references

__all__ = [
    "check_inputs",
    "digest_input",
    "resolve_inputs",
]


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")


_BUILTIN_EMBEDDERS = frozenset(
    {"static"}
)  # the embedder that is no file, where no folder was put before it


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")


def check_inputs(
    recipe: Recipe, locate: Callable[[tuple[str | int, ...]], str] | None = None
) -> None:
    """Refuse paths that lead nowhere: of a flow, its inputs and what its steps name themselves.

    What a step takes from another is not asked for; neither are references with a scheme.

    Args:
        recipe: Validated.
        locate: Tells where a setting stands; by default its name does.

    Raises:
        DataError: With every path that is missing.
    """
    missing = []
    for path, value in _list_paths(recipe):
        if _SCHEME.match(value) or value in _BUILTIN_EMBEDDERS or os.path.exists(value):  # noqa: PTH110  # false where none may look
            continue
        named = ".".join(str(part) for part in path)
        where = locate(path) if locate else named
        missing.append(
            Problem(
                f"{named}: {value} does not exist" if locate else f"{value} does not exist",
                "data.missing",
                where,
                "a file or folder, or a reference as hub:ORG/NAME",
                _suggest_next(value),
            )
        )
    if missing:
        raise DataError(missing)


def _list_paths(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], str]]:
    yield from list_references(recipe)
    if isinstance(recipe, FlowRecipe):
        for name, step in recipe.steps.items():
            for path, value in list_references(step.recipe):
                yield ("steps", name, *path), value


def resolve_inputs(inputs: Mapping[str, str]) -> None:
    """Find what ``hub:`` inputs mean, so that a missing one ends a run before its first step.

    Raises:
        CheckpointError: If one is found nowhere.
    """
    from stillroom.models import resolve_checkpoint

    for value in inputs.values():
        if value.startswith("hub:"):
            resolve_checkpoint(value)


def _suggest_next(value: str) -> str:
    near = os.path.relpath(value)
    if _HUB_NAME.match(near) and not near.startswith("."):
        return f"check the path, or write hub:{near}"
    return "check the path; relative paths start at the folder of the recipe, or at this one"


def digest_input(value: str) -> str:
    """Return a digest that changes when what a reference points to changes.

    An artifact has its own digest; another folder or file is digested by names and bytes; a
    checkpoint's weights by name, size and time of change, since gigabytes would be read at every
    run otherwise, and so are objects in a store, with their marks. A reference to a hub is itself.

    Raises:
        DataError: If a store does not answer, or holds nothing at the address.
    """
    if is_store_address(value):
        return digest_json(list_objects(value)[0])
    path = Path(value)
    if not path.is_absolute() or not path.exists():
        return ""
    if (path / ARTIFACT_FILE).is_file():
        return read_artifact(path).digest
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    entries = []
    for file in files:
        if not file.is_file():
            continue
        if file.suffix in {".safetensors", ".gguf", ".bin"}:
            mark = f"{file.stat().st_size} {file.stat().st_mtime_ns}"
        else:
            mark = digest_file(file)
        entries.append([file.relative_to(path.parent).as_posix(), mark])
    return digest_json(entries)
