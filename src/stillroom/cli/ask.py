"""``stillroom ask``, and the options of every command that answers from documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stillroom.cli.options import FiniteFloatRange, debug_option, existing_path, json_option

if TYPE_CHECKING:
    from stillroom.rag.settings import AnswerOptions

__all__ = [
    "ask_command",
    "ask_options",
    "ask_settings",
]


CommandT = TypeVar("CommandT", bound=Callable[..., Any])


_ASK_OPTIONS = (
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
        "'stillroom list methods rag.answer_strategies' shows which.",
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
        type=FiniteFloatRange(0, 1),
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


def ask_options(function: CommandT) -> CommandT:
    """Add the options that say how passages are found, judged and shown."""
    for option in reversed(_ASK_OPTIONS):
        function = option(function)
    return function


def ask_settings(given: dict[str, Any]) -> AnswerOptions:
    """Return what the options mean.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of bounds.
        DataError: If the file of kept answers cannot be used.
    """
    from stillroom.rag.generation.semantic_cache import SemanticCache
    from stillroom.rag.settings import parse_answer_settings

    path = given.pop("cache", None)
    settings = parse_answer_settings(given)  # type: ignore[arg-type]  # click has the names and types
    if path is not None:
        settings["cache"] = SemanticCache(path)
    return settings


@click.command(
    "ask",
    epilog="""
\b
Examples:
  stillroom ask run "What does the with statement do?"
  stillroom ask run "What is a generator?" --model hub:HuggingFaceTB/SmolLM2-135M-Instruct
""",
)
@click.argument("run", type=existing_path)
@click.argument("question")
@click.option(
    "--k",
    default=3,
    type=click.IntRange(min=1),
    show_default=True,
    help="How many passages the model is shown.",
)
@click.option("--model", default="", help="Another model than the run's own.")
@ask_options
@click.option("--steps", is_flag=True, help="Print every step of finding and judging.")
@json_option
@debug_option
def ask_command(
    run: Path, question: str, model: str, steps: bool, as_json: bool, **given: Any
) -> None:
    """Answer a question from a run's documents, with citations.

    Where no passage supports an answer, the passages that came nearest are named.
    """
    from stillroom.cli.results import print_answer
    from stillroom.flow import open_run
    from stillroom.rag.observability import configure_from_environment

    configure_from_environment()
    settings = ask_settings(given)
    with open_run(run, model=model, say=lambda line: click.echo(line, err=True)) as opened:
        print_answer(opened.ask(question, **settings), as_json=as_json, steps=steps, asked_of=run)
