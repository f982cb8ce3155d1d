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
)  # an embedder that is not a file and takes no folder prefix
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")
_DATA_FILE = re.compile(r"\.(jsonl?|csv|txt|md|parquet|zst|ya?ml|html|pdf)\Z")


def check_inputs(
    recipe: Recipe, locate: Callable[[tuple[str | int, ...]], str] | None = None
) -> None:
    """Refuse missing paths; of a flow, those of its inputs and its steps.

    Outputs of other steps are not checked; neither are references with a scheme.

    Raises:
        DataError: With every missing path.
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
                "a file or folder, or a reference such as hub:ORG/NAME",
                _suggest_next(value, is_typed=locate is not None),
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
    """Resolve ``hub:`` inputs, so that a missing one ends a run before its first step.

    Raises:
        CheckpointError: If one cannot be found.
    """
    from stillroom.models import resolve_checkpoint

    for value in inputs.values():
        if value.startswith("hub:"):
            resolve_checkpoint(value)


def _suggest_next(value: str, *, is_typed: bool) -> str:
    """Return what to do about a missing path; a recipe that is typed here may mean files here."""
    parts = Path(value).parts
    tails = (Path(*parts[start:]) for start in range(1, len(parts)))
    here = next((tail for tail in tails if is_typed and tail.exists()), None)
    if here:
        start = "relative paths start at the folder of the recipe"
        return f"if {here.absolute()} is meant, write that: {start}"
    near = os.path.relpath(value)
    is_near = near.startswith(".") or os.path.exists(Path(near).parts[0])  # noqa: PTH110
    if _HUB_NAME.match(near) and not is_near and not _DATA_FILE.search(near):
        return f"check the path, or write hub:{near}"
    return "check the path; relative paths start at the folder of the recipe, or at the current one"


def digest_input(value: str) -> str:
    """Return a digest that changes with the target of a reference.

    An artifact has its own digest; another folder or file is digested by names and bytes. Weights
    of a checkpoint are digested by name, size and modification time, to avoid reading gigabytes at
    every run; objects in a store likewise, with their ETags. A hub reference is its own digest.

    Raises:
        DataError: If a store does not answer, or has no object at the address.
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
