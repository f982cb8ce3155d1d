"""Flags that mean the same in every command."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from stillroom.recipes import EngineChoice

__all__ = [
    "access_options",
    "debug_option",
    "engine_option",
    "existing_path",
    "hang",
    "has_printed_json",
    "job_options",
    "json_option",
    "print_json",
    "read_engine",
    "view_options",
]

F = TypeVar("F", bound=Callable[..., Any])

existing_path = click.Path(exists=False, path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
)
_JSON_VERSION = 1


def job_options(function: F) -> F:
    """Add --overwrite, --resume, --quiet and --debug."""
    for option in (
        debug_option,
        click.option("--quiet", is_flag=True, help="Draw no progress."),
        click.option("--overwrite", is_flag=True, help="Replace what lies at --out."),
        click.option("--resume", is_flag=True, help="Go on where a stopped run left off."),
    ):
        function = option(function)
    return function


def engine_option(function: F) -> F:
    """Add --engine: where the work is done."""
    return click.option(
        "--engine",
        default="local",
        show_default=True,
        help="Where the work is done: local, ray, or ray:ADDRESS.",
    )(function)


def read_engine(written: str) -> EngineChoice:
    """Return the engine that ``--engine`` names.

    Raises:
        RecipeError: If it names none.
    """
    from stillroom.errors import RecipeError
    from stillroom.recipes import EngineChoice

    name, _, address = written.partition(":")
    if name == "ray" and address:
        return EngineChoice.model_validate({"ray": {"address": address}})
    if written not in ("local", "ray"):
        raise RecipeError(
            f"'{written}' is not an engine",
            code="recipe.value",
            where="--engine",
            expected="local, ray, or ray:ADDRESS",
            next="leave it out to work on this machine",
        )
    return EngineChoice.model_validate(written)


def access_options(function: F) -> F:
    """Add --tenant and --principal: who asks."""
    for option in (
        click.option(
            "--principal",
            "principals",
            multiple=True,
            help="With --tenant: a user or group that labels may name; may be repeated.",
        ),
        click.option("--tenant", default="", help="Who asks, where the index has tenants."),
    ):
        function = option(function)
    return function


def view_options(function: F) -> F:
    """Add --where, --snapshot, --tenant and --principal: what of an index is asked, and by whom."""
    function = access_options(function)
    for option in (
        click.option("--snapshot", default=None, help="An older state, by number or digest."),
        click.option("--where", default="", help="Only documents of these fields: year >= 2020."),
    ):
        function = option(function)
    return function


def hang(lead: str, text: str, *, always: bool = False) -> str:
    """Return a row of a table, its text wrapped to the terminal and hung below itself.

    Args:
        lead: What stands before the text: names, padded.
        text: The last column.
        always: Wrap to $COLUMNS where there is no terminal, too; else a row stays one line there,
            as other programs want it.
    """
    if not always and not sys.stdout.isatty():
        return lead + text
    width = max(shutil.get_terminal_size().columns, 30)
    indent = " " * len(lead) if width >= 2 * len(lead) else "    "
    return click.wrap_text(text, width, initial_indent=lead, subsequent_indent=indent)


_printed: list[bool] = []


def has_printed_json() -> bool:
    """Return whether this process has printed its result as JSON."""
    return bool(_printed)


def print_json(value: dict[str, Any]) -> None:
    """Print a result as one JSON object with its version."""
    _printed.append(True)
    text = json.dumps({"version": _JSON_VERSION, **value}, ensure_ascii=False, indent=1)
    # A file's name may hold bytes that are no UTF-8: as an escape they are JSON, and come back.
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))
