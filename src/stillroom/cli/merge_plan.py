"""``stillroom merge plan``: what a merge will do, before it does it."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "plan",
    epilog="""
\b
Examples:
  stillroom merge plan recipes/merge-ties.yaml
  stillroom merge plan recipes/merge-ties.yaml method.density=0.3 --json
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
@debug_option
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print what a merge will read, write and need."""
    from stillroom.errors import RecipeError
    from stillroom.merge.plan import plan_merge
    from stillroom.merge.recipe import MergeRecipe
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, MergeRecipe):
        raise RecipeError(
            f"kind {loaded.kind} is not a merge",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: merge",
            next="stillroom check RECIPE works for every kind",
        )
    plan = plan_merge(loaded)
    if as_json:
        print_json({"plan": plan.to_json()})
    else:
        click.echo(str(plan))
