"""``stillroom synth preview``: see a few records before making many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

if TYPE_CHECKING:
    from stillroom.synth.run import Preview

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
@click.option(
    "--n",
    default=5,
    type=click.IntRange(min=1),
    show_default=True,
    help="How many units to ask about.",
)
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
    units = preview(loaded, n)
    if as_json:
        print_json({"units": [_to_json(unit) for unit in units]})
        return
    for unit in units:
        for record, dropped_by, verdict in unit.records:
            for message in record.messages:
                click.echo(f"{message.role}: {message.content}")
            click.echo(
                f"  {f'dropped by {dropped_by}: {verdict.reason}' if dropped_by else 'kept'}\n"
            )
        for reason, text in unit.failures:
            click.echo(f"{' '.join(text.split())[:200]}\n  no record: {reason}\n")


def _to_json(unit: Preview) -> dict[str, Any]:
    return {
        "seed": unit.seed.item.id if unit.seed is not None else None,
        "records": [
            {"record": record.to_json(), "dropped_by": dropped_by, "reason": verdict.reason}
            for record, dropped_by, verdict in unit.records
        ],
        "failures": [{"reason": reason, "text": text} for reason, text in unit.failures],
    }
