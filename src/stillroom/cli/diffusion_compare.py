"""``stillroom diffusion compare``: a diffusion model beside its autoregressive twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.options import existing_path, job_options, json_option, print_json

if TYPE_CHECKING:
    from stillroom.records import Record

__all__ = ["command"]


@click.command(
    "compare",
    epilog="""
\b
Examples:
  stillroom diffusion compare recipes/diffusion-scratch.yaml --out both
  stillroom diffusion compare facts.yaml --out both --facts "{a} is {b} ." train.steps=2000
  stillroom diffusion compare facts.yaml --out both --ask same=test.jsonl --ask turned=back.jsonl
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, required=True, help="A folder for both and the report.")
@click.option(
    "--facts",
    default="",
    metavar="TEMPLATE",
    help="What facts of the records read as, as '{a} is {b} .': asked both ways.",
)
@click.option(
    "--ask",
    multiple=True,
    metavar="NAME=RECORDS",
    help="Records whose answers both are to write, as reversed=test.jsonl; may be repeated.",
)
@click.option("--most", type=click.IntRange(min=1), default=200, help="Records and facts asked.")
@json_option
@job_options
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    out: Path,
    facts: str,
    ask: tuple[str, ...],
    most: int,
    as_json: bool,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Train a diffusion model and its autoregressive twin, and compare them.

    The twin has the same network, records, batch and seed, and as many steps as make the same
    arithmetic. What is finished is not trained again with --resume.
    """
    from stillroom.diffusion.comparing import compare_models, twin_recipe
    from stillroom.diffusion.facts import find_facts
    from stillroom.diffusion.recipe import DiffusionRecipe
    from stillroom.errors import RecipeError
    from stillroom.flow import run_recipe
    from stillroom.jobs import choose_reporter
    from stillroom.recipes import load_recipe
    from stillroom.train.split import split_records

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, DiffusionRecipe):
        raise RecipeError(
            f"kind {loaded.kind} trains no diffusion model",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: diffusion",
            next="stillroom new diffusion",
        )
    questions = _read_questions(ask)
    if facts:  # a template that fits nothing is told before anything is trained
        find_facts(split_records(Path(loaded.records)).train, facts)
    out.mkdir(parents=True, exist_ok=True)
    places = {"diffusion": loaded, "autoregressive": twin_recipe(loaded)}
    for name, one in places.items():
        run_recipe(
            one,
            out / name,
            resume=resume,
            overwrite=overwrite,
            reporter=choose_reporter(quiet=quiet),
        )
    report = compare_models(
        out / "diffusion",
        out / "autoregressive",
        loaded,
        template=facts,
        questions=questions,
        most=most,
    ).write(out)
    if as_json:
        print_json({"out": str(out), "metrics": [m.to_json() for m in report.metrics.values()]})
        return
    for metric in report.metrics.values():
        note = f"  ({metric.note})" if metric.note else ""
        click.echo(f"{metric.name:34} {metric.value:.4g} (n={metric.n}){note}")
    click.echo(f"report   {out / 'report.html'}")


def _read_questions(words: tuple[str, ...]) -> dict[str, list[Record]]:
    """Return the records of each ``NAME=RECORDS``; read before anything is trained."""
    from stillroom.records import read_records

    found: dict[str, list[Record]] = {}
    for word in words:
        name, _, path = word.partition("=")
        if not name or not path or name in found:
            raise click.BadParameter(
                f"{word!r} is not NAME=RECORDS with a name of its own", param_hint="--ask"
            )
        found[name] = list(read_records(Path(path)))
    return found
