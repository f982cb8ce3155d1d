"""``stillroom merge extract``: what a fine-tuning changed, as an adapter or a task vector."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import debug_option, json_option, print_json

__all__ = ["command"]


@click.command(
    "extract",
    epilog="""
\b
Examples:
  stillroom merge extract ./tuned --base ./base --out ./adapter --rank 32
  stillroom merge extract ./tuned --base ./base --out ./vector --as task_vector --json
""",
)
@click.argument("finetuned")
@click.option("--base", required=True, help="The checkpoint that it was fine-tuned from.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder to write.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["lora", "task_vector"]),
    default="lora",
    help="An adapter that peft loads, or every difference whole.",
)
@click.option(
    "--rank", type=click.IntRange(min=1), help="Most rank of a tensor; 32 where neither is given."
)
@click.option("--error", type=Finite(), help="Most relative error of a tensor; its rank follows.")
@click.option(
    "--svd",
    "routine",
    type=click.Choice(["exact", "randomized"]),
    default="exact",
    help="Randomized is faster on large matrices.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the randomized SVD.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(
    finetuned: str,
    base: str,
    out: Path,
    kind: str,
    rank: int | None,
    error: float | None,
    routine: Literal["exact", "randomized"],
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Take out what a fine-tuning changed.

    FINETUNED minus BASE becomes a LoRA adapter, or a task vector; the error by layer is printed.
    """
    from stillroom.errors import RecipeError
    from stillroom.merge.extract import extract_lora, extract_task_vector
    from stillroom.merge.reading import open_checkpoint

    if kind == "task_vector" and (rank is not None or error is not None):
        raise RecipeError(
            "a task vector is whole: it has neither a rank nor an error",
            code="merge.extract-settings",
            expected="--rank or --error with --as lora only",
            next="leave them out, or extract a LoRA",
        )
    tuned, start = open_checkpoint(finetuned), open_checkpoint(base)
    if kind == "lora":
        result = extract_lora(
            tuned,
            start,
            out,
            rank=rank,
            error=error,
            routine=routine,
            seed=seed,
            overwrite=overwrite,
        )
    else:
        result = extract_task_vector(tuned, start, out, overwrite=overwrite)
    if as_json:
        print_json({"extraction": result.to_json()})
    else:
        click.echo(str(result))
