"""``stillroom ask``: a cited answer from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.asking import ask_options, ask_settings
from stillroom.cli.options import debug_option, existing_path, json_option

__all__ = ["command"]


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
def command(run: Path, question: str, model: str, steps: bool, as_json: bool, **given: Any) -> None:
    """Answer a question from a run's documents, with citations.

    Where no passage supports an answer, the passages that came nearest are named.
    """
    from stillroom.cli.talk import print_answer
    from stillroom.flow import open_run
    from stillroom.rag.tracing import observe_if_asked

    observe_if_asked()
    settings = ask_settings(given)
    with open_run(run, model=model, say=lambda line: click.echo(line, err=True)) as opened:
        print_answer(opened.ask(question, **settings), as_json=as_json, steps=steps, asked_of=run)
