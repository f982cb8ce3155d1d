"""``stillroom merge inspect``: where models agree and where they fight, before merging them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import click

from stillroom.cli.numbers import Finite
from stillroom.cli.options import debug_option, json_option, print_json

__all__ = ["command"]


@click.command(
    "inspect",
    epilog="""
\b
Examples:
  stillroom merge inspect ./base ./tuned-a ./tuned-b --out ./inspection
  stillroom merge inspect ./base ./tuned-a ./adapter-b --records held-out.jsonl --json
""",
)
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="A folder for the page and numbers.")
@click.option("--density", type=Finite(), default=0.2, help="Share that trimming would keep.")
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    help="Also measure the loss at 11 points between each two models, on these.",
)
@click.option(
    "--max-records",
    type=click.IntRange(min=1),
    default=200,
    help="How many of them, drawn by --seed.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Which records are drawn.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=512,
    help="Tokens of a record that are read.",
)
@click.option("--device", default="auto", help="Where the models run: auto, cpu, cuda, mps.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(
    base: str,
    models: tuple[str, ...],
    out: Path | None,
    density: float,
    records: Path | None,
    max_records: int,
    seed: int,
    max_tokens: int,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show where models agree and where they fight.

    MODELS are checkpoints, or adapters, that were fine-tuned from BASE.
    """
    from dataclasses import replace

    from stillroom.merge.inspect import inspect_parents, open_parent
    from stillroom.merge.reading import open_checkpoint

    start = open_checkpoint(base)
    parents = [open_parent(model, start) for model in models]
    found = inspect_parents(start, parents, density=density)
    if records is not None:
        from stillroom.merge.path import trace_path
        from stillroom.merge.scoring import draw_records

        drawn = draw_records(
            str(records),
            split="",
            limit=max_records,
            seed=seed,
            say=lambda line: click.echo(line, err=True),
        )
        paths = [
            trace_path(
                (found.parents[i], found.parents[j]),
                (parents[i].weights, parents[j].weights),
                drawn,
                max_tokens=max_tokens,
                device=device,
            )
            for i, j in combinations(range(len(parents)), 2)
        ]
        found = replace(found, paths=tuple(paths))
    if out is not None:
        from stillroom.merge.inspect_page import write_inspection

        page = write_inspection(found, out, overwrite=overwrite)
        click.echo(f"wrote {page}", err=True)
    if as_json:
        print_json({"inspection": found.to_json()})
    else:
        click.echo(str(found))
