"""``stillroom merge learn``: coefficients by layer, learned on records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stillroom.cli.numbers import Finite, FiniteRange
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "learn",
    epilog="""
\b
Examples:
  stillroom merge learn ./base ./a ./b --records tasks.jsonl --out learned.yaml
  stillroom merge learn ./base ./a ./b --records tasks.jsonl --objective entropy --json
""",
)
@click.argument("base")
@click.argument("models", nargs=-1, required=True)
@click.option("--records", required=True, type=existing_path, help="Of all tasks together.")
@click.option("--out", type=click.Path(path_type=Path), help="A recipe to write.")
@click.option(
    "--objective",
    type=click.Choice(["cross_entropy", "entropy"]),
    default="cross_entropy",
    help="Of the assistant's tokens, or of predictions, which needs no answers.",
)
@click.option(
    "--search",
    type=click.Choice(["gradient", "spsa"]),
    default="gradient",
    help="By gradients, or by two losses a step.",
)
@click.option(
    "--group",
    type=click.Choice(["layer", "module", "model"]),
    default="layer",
    help="What shares a coefficient.",
)
@click.option("--start", type=Finite(), default=0.3, help="The coefficients to begin with.")
@click.option("--steps", type=click.IntRange(min=1), default=100, help="How many.")
@click.option(
    "--learning-rate",
    type=FiniteRange(min=0, min_open=True),
    default=0.01,
    help="Of Adam.",
)
@click.option("--batch", type=click.IntRange(min=1), default=4, help="Records a step.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=512,
    help="Tokens of a record that are read.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the split and the batches.")
@click.option("--device", default="auto", help="Where the models run: auto, cpu, cuda, mps.")
@json_option
@debug_option
def command(
    base: str,
    models: tuple[str, ...],
    records: Path,
    out: Path | None,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn on records how much of each model every layer takes.

    What comes out is a recipe for task_arithmetic; the gain is measured on records never seen.
    """
    from stillroom.merge.inspect import open_parent
    from stillroom.merge.learned import Learning, learn_coefficients
    from stillroom.merge.reading import open_checkpoint
    from stillroom.records import read_records

    start = open_checkpoint(base)
    parents = [open_parent(model, start) for model in models]
    learning = Learning(**settings)
    found = learn_coefficients(start, parents, list(read_records(records)), learning, device=device)
    if out is not None:
        from stillroom.merge.learned import write_recipe

        write_recipe(found.to_recipe(base, models), out)
        click.echo(f"wrote {out}; make it with: stillroom run {out} --out DIR", err=True)
    if as_json:
        print_json({"learned": found.to_json()})
    else:
        click.echo(str(found))
