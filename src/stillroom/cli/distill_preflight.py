"""``stillroom distill preflight``: what would go wrong, before hours are spent."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "preflight",
    epilog="""
\b
Examples:
  stillroom distill preflight recipes/distill-forward-kl.yaml
  stillroom distill preflight my.yaml --json student=./other
""",
)
@click.argument("recipe", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=existing_path, default=Path("run"), help="Where it would be written.")
@json_option
@debug_option
def command(recipe: Path, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Say what would go wrong in a distillation, before it starts.

    Checks machine, records, tokenizers, chat templates and end tokens, and compares teacher and
    student on held-out records. Checkpoints on a hub are fetched. Nothing is written.
    """
    from stillroom.errors import RecipeError
    from stillroom.flow import preflight_recipe
    from stillroom.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    flight = preflight_recipe(loaded, out, loads=True, fetch=True)
    if flight is None:
        raise RecipeError(
            f"a recipe of kind {loaded.kind} has no preflight",
            code="recipe.wrong-kind",
            where=str(recipe),
            expected="kind: distill",
            next=f"stillroom check {recipe}",
        )
    if as_json:
        print_json(flight.to_json())
    else:
        for line in flight.lines():
            click.echo(line)
    flight.raise_errors()
