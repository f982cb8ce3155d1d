"""``stillroom rag ask``: a cited answer from an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.asking import ask_options, ask_settings
from stillroom.cli.options import debug_option, existing_path, json_option, view_options

__all__ = ["command"]

_DEFAULT = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"


@click.command(
    "ask",
    epilog="""
\b
Examples:
  stillroom rag ask index "What is a coroutine?"
  stillroom rag ask index "What is a coroutine?" --model ./my-checkpoint --k 5
  stillroom rag ask index "What is a coroutine?" --way dense+mmr --answering corrective:max_rounds=1
""",
)
@click.argument("index", type=existing_path)
@click.argument("question")
@click.option("--model", default=_DEFAULT, show_default=True, help="What answers.")
@click.option(
    "--k",
    default=3,
    type=click.IntRange(min=1),
    show_default=True,
    help="How many passages the model is shown.",
)
@ask_options
@click.option("--steps", is_flag=True, help="Print every step of finding and judging.")
@view_options
@json_option
@debug_option
def command(
    index: Path,
    question: str,
    model: str,
    steps: bool,
    where: str,
    snapshot: str | None,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Answer a question from an index, with citations.

    Where no passage supports an answer, the passages that came nearest are named.
    """
    from stillroom.cli.talk import print_answer
    from stillroom.flow import open_index
    from stillroom.rag.access import Access
    from stillroom.rag.tracing import observe_if_asked

    observe_if_asked()
    settings = ask_settings(given)
    with open_index(
        index,
        model,
        say=lambda line: click.echo(line, err=True),
        where=where,
        snapshot=snapshot,
        access=Access(tenant, principals) if tenant or principals else None,
    ) as opened:
        print_answer(opened.ask(question, **settings), as_json=as_json, steps=steps, asked_of=index)
