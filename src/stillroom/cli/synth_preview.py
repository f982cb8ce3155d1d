"""``stillroom synth preview``: see a few records before making many."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "preview",
    epilog="""
\b
Examples:
  stillroom synth preview recipes/synth-grounded-qa.yaml
  stillroom synth preview recipes/synth-grounded-qa.yaml --n 10 --json
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--n", default=5, show_default=True, help="How many passages to ask about.")
@json_option
@debug_option
def command(recipe: Path, overrides: tuple[str, ...], n: int, as_json: bool) -> None:
    """Make a few records and print them."""
    from stillroom.errors import RecipeError
    from stillroom.recipes import load_recipe
    from stillroom.synth.recipe import SynthRecipe
    from stillroom.synth.run import preview

    loaded = load_recipe(recipe, overrides)
    if not isinstance(loaded, SynthRecipe):
        raise RecipeError(
            f"kind {loaded.kind} makes no records",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: synth",
            next="stillroom new synth/grounded_qa",
        )
    rows = list(preview(loaded, n))
    if as_json:
        shown = [{"record": record.to_json(), "verdict": reason} for record, reason in rows]
        print_json({"records": shown})
        return
    for record, reason in rows:
        for message in record.messages:
            click.echo(f"{message.role}: {message.content}")
        click.echo(f"  {reason or 'kept'}\n")
