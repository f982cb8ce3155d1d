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
        help="Retrieval pipeline: [TRANSFORM>]RETRIEVER[+RERANKER]; default convex.",
    ),
    click.option(
        "--answering",
        default="direct",
        show_default=True,
        help="Answering method: METHOD[:KEY=VALUE,...]; see 'stillroom list methods "
        "rag.answer_strategies'.",
    ),
    click.option(
        "--checker",
        default="overlap",
        show_default=True,
        help="Support checker of sentences: METHOD[:KEY=VALUE,...].",
    ),
    click.option(
        "--unsupported",
        type=click.Choice(["mark", "drop", "refuse"]),
        default="mark",
        show_default=True,
        help="Treatment of sentences that no passage supports.",
    ),
    click.option(
        "--neighbours",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Number of passages shown before and after each hit.",
    ),
    click.option(
        "--per-document",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Maximum number of hits from one document; 0 for no limit.",
    ),
    click.option(
        "--shorten", is_flag=True, help="Truncate the last passage between sentences if needed."
    ),
    click.option("--best-at-ends", is_flag=True, help="Show the best passages first and last."),
    click.option(
        "--parent-share",
        type=FiniteFloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="Show the parent section when more than this share of its passages is found "
        "(indexes cut by parent_child or sentence_window).",
    ),
    click.option(
        "--cache",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Cache answers in this file, and reuse them for the same question.",
    ),
)


def ask_options(function: CommandT) -> CommandT:
    """Add the options of retrieval, answering and context."""
    for option in reversed(_ASK_OPTIONS):
        function = option(function)
    return function


def ask_settings(options: dict[str, Any]) -> AnswerOptions:
    """Return the settings that the options give.

    Raises:
        RecipeError: If a method or setting is unknown, or a value is out of range.
        DataError: If the answer cache cannot be used.
    """
    from stillroom.rag.generation.semantic_cache import SemanticCache
    from stillroom.rag.settings import parse_answer_settings

    path = options.pop("cache", None)
    settings = parse_answer_settings(options)  # type: ignore[arg-type]  # click has the names and types
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
    help="Number of passages shown to the model.",
)
@click.option("--model", default="", help="Model to use instead of the run's own.")
@ask_options
@click.option("--steps", is_flag=True, help="Print every step of retrieval and answering.")
@json_option
@debug_option
def ask_command(
    run: Path, question: str, model: str, steps: bool, as_json: bool, **options: Any
) -> None:
    """Answer a question from a run's documents, with citations.

    If no passage supports an answer, the nearest passages are listed.
    """
    from stillroom.cli.results import print_answer
    from stillroom.flow import open_run
    from stillroom.rag.observability import configure_from_environment

    configure_from_environment()
    settings = ask_settings(options)
    with open_run(run, model=model, say=lambda line: click.echo(line, err=True)) as opened:
        print_answer(opened.ask(question, **settings), as_json=as_json, steps=steps, asked_of=run)
