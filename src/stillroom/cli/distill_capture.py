"""``stillroom distill capture``: the teacher's words for a recipe, kept without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

if TYPE_CHECKING:
    from stillroom.distill import DistillRecipe

__all__ = ["command"]


@click.command(
    "capture",
    epilog="""
\b
Examples:
  stillroom distill capture recipes/distill.yaml --out teacher-cache --estimate
  stillroom distill capture my.yaml targets.mode=sampled --out teacher-cache
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache's folder.")
@click.option("--estimate", is_flag=True, help="Say coverage, size and bias; capture nothing.")
@click.option("--quiet", is_flag=True, help="Draw no progress.")
@json_option
@debug_option
def command(
    recipe: Path, overrides: tuple[str, ...], out: Path, estimate: bool, quiet: bool, as_json: bool
) -> None:
    """Fill a teacher cache for a recipe without training.

    What is there already is not captured again: run it again after a stop, or with other records.
    Recipes use it as targets.cache.
    """
    from stillroom.distill.cache_fill import capture_recipe
    from stillroom.errors import RecipeError
    from stillroom.jobs import choose_reporter
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    if loaded.kind != "distill":
        raise RecipeError(
            f"kind {loaded.kind} has no teacher to capture",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: distill",
            next="stillroom new distill",
        )
    filled = capture_recipe(
        cast("DistillRecipe", loaded),
        out,
        only_estimate=estimate,
        reporter=choose_reporter(quiet=quiet),
    )
    if as_json:
        print_json({"out": str(out), **filled.to_json()})
        return
    if estimate:
        click.echo(f"{out}: {filled.before}")
        click.echo(str(filled.cost) if filled.cost else "nothing is missing")
        return
    cache = filled.cache
    click.echo(f"{out}: {cache['records']} records, {cache['positions']} positions")
