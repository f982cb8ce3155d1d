"""Inputs of a recipe: the check that they exist, and the digest of each for the step cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from stillroom.errors import DataError, Problem
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.flow.recipe import FlowRecipe
from stillroom.objects import is_store_address, list_objects
from stillroom.provenance import ARTIFACT_FILE, digest_file, digest_json, read_artifact
from stillroom.provenance.artifact import refuse_unfinished
from stillroom.recipes import Recipe, list_references
from stillroom.records import count_records, find_record_file, read_records
from stillroom.records.formats import from_row
from stillroom.records.streams import iter_rows

__all__ = [
    "check_inputs",
    "check_rows",
    "describe_text_records",
    "digest_input",
    "resolve_inputs",
]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_BUILTIN_EMBEDDERS = frozenset(
    {"static"}
)  # an embedder that is not a file and takes no folder prefix
_FIRST_ROWS = 20
_MAX_QUESTION_BYTES = 16 * 2**20  # a set is read whole
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")
_DATA_FILE = re.compile(r"\.(jsonl?|csv|txt|md|parquet|zst|gz|ya?ml|html|pdf)\Z")


def check_inputs(
    recipe: Recipe,
    locate: Callable[[tuple[str | int, ...]], str] | None = None,
    *,
    with_rows: bool = False,
) -> None:
    """Refuse missing paths, devices and pipes; of a flow, those of its inputs and its steps.

    Outputs of other steps are not checked; neither are references with a scheme. With
    ``with_rows`` the first rows of local files are read, too: see ``check_rows``.

    Raises:
        DataError: With every missing path, the first unfinished one, or every file whose rows
            cannot be read.
    """
    missing = []
    for path, value in _list_paths(recipe):
        is_there = os.path.isfile(value) or os.path.isdir(value)  # noqa: PTH112, PTH113  # false where none may look
        if _SCHEME.match(value) or value in _BUILTIN_EMBEDDERS or is_there:
            continue
        refuse_unfinished(Path(value))
        is_odd = os.path.exists(value)  # noqa: PTH110
        what = f"{value} is a device or a pipe" if is_odd else f"{value} does not exist"
        named = ".".join(str(part) for part in path)
        where = locate(path) if locate else named
        missing.append(
            Problem(
                f"{named}: {what}" if locate else what,
                "data.missing",
                where,
                "a file or folder, or a reference such as hub:ORG/NAME",
                _suggest_next(value, is_typed=locate is not None),
            )
        )
    if missing:
        raise DataError(missing)
    if with_rows:
        check_rows(recipe, locate)


def check_rows(
    recipe: Recipe, locate: Callable[[tuple[str | int, ...]], str] | None = None
) -> None:
    """Refuse local files of records or questions of which no row at the start can be read.

    A file with some readable rows passes: jobs count and report the others.

    Raises:
        DataError: With the first unreadable row of each.
    """
    problems = []
    for path, value in _list_paths(recipe):
        read = _ROW_READERS.get(next((one for one in path[::-1] if isinstance(one, str)), ""))
        if read is None or not Path(value).is_file():
            continue
        try:
            read(Path(value))
        except DataError as error:
            where = f"{locate(path)}: " if locate else ""
            problems += [replace(one, where=f"{where}{one.where}") for one in error.problems]
    if problems:
        raise DataError(problems)


def describe_text_records(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for each file of plain text that is named as records: how it is read."""
    for path, value in list_references(recipe):
        name = next((part for part in path[::-1] if isinstance(part, str)), "")
        if name == "records" and value.lower().endswith(".txt") and Path(value).is_file():
            yield (
                f"{value} is read line by line, as {count_records(value):,} records of plain "
                "text; to keep longer texts whole, give JSON lines with the key 'text'"
            )


def _read_first_records(file: Path) -> None:
    """Raise the error of a file's first row if none of the first rows can be read."""
    for _, row in islice(iter_rows(find_record_file(file)), _FIRST_ROWS):
        with suppress(DataError):
            if not isinstance(row, DataError):
                from_row(row)
                return
    next(read_records(file), None)


def _read_questions(file: Path) -> None:
    if file.stat().st_size <= _MAX_QUESTION_BYTES:
        read_question_set(file, every=True)


_ROW_READERS: Mapping[str, Callable[[Path], None]] = {
    "records": _read_first_records,
    "questions": _read_questions,
}


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
    tails = (Path(*parts[start:]) for start in range(1, len(parts)) if is_typed)
    here = next(filter(os.path.exists, tails), None)  # false, too, of a name that is too long
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
    if (path / ARTIFACT_FILE).is_file() and not (artifact := read_artifact(path)).is_flat:
        return artifact.digest
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
