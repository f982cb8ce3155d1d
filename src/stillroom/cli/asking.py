"""The options of every command that answers questions from documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stillroom.cli.numbers import FiniteRange

if TYPE_CHECKING:
    from stillroom.rag.asking import AskSettings

__all__ = ["ask_options", "ask_settings"]

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--way",
        default="",
        help="How passages are found: [TRANSFORM>]RETRIEVER[+RERANKER]; default convex.",
    ),
    click.option(
        "--answering",
        default="direct",
        show_default=True,
        help="What is judged before reading: METHOD[:KEY=VALUE,...]; "
        "'stillroom list methods rag.answering' shows which.",
    ),
    click.option(
        "--checker",
        default="overlap",
        show_default=True,
        help="What says whether a passage supports a sentence: METHOD[:KEY=VALUE,...].",
    ),
    click.option(
        "--unsupported",
        type=click.Choice(["mark", "drop", "refuse"]),
        default="mark",
        show_default=True,
        help="What becomes of sentences that no passage supports.",
    ),
    click.option(
        "--neighbours",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Passages shown before and after each hit.",
    ),
    click.option(
        "--per-document",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Most hits of one document; 0 for no cap.",
    ),
    click.option(
        "--shorten", is_flag=True, help="Cut the last passage between sentences where it must be."
    ),
    click.option("--best-at-ends", is_flag=True, help="Show the best passages first and last."),
    click.option(
        "--parent-share",
        type=FiniteRange(0, 1),
        default=0.0,
        show_default=True,
        help="Show the part around passages where more than this share of them is found "
        "(indexes cut by parent_child or sentence_window).",
    ),
    click.option(
        "--cache",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Keep answers in this file, and give them again to the same question.",
    ),
)


def ask_options(function: F) -> F:
    """Add the options that say how passages are found, judged and shown."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def ask_settings(given: dict[str, Any]) -> AskSettings:
    """Return what the options mean.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of bounds.
        DataError: If the file of kept answers cannot be used.
    """
    from stillroom.rag.asking import read_settings
    from stillroom.rag.semantic_cache import SemanticCache

    path = given.pop("cache", None)
    settings = read_settings(given)  # type: ignore[arg-type]  # click has the names and types
    if path is not None:
        settings["cache"] = SemanticCache(path)
    return settings
