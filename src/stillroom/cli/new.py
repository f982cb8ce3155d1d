"""``stillroom new``: print a commented recipe."""

from __future__ import annotations

import click

from stillroom.cli.naming import complete_recipes
from stillroom.cli.options import debug_option

__all__ = ["command"]


@click.command(
    "new",
    epilog="""
\b
Examples:
  stillroom new flow/make > make.yaml
  stillroom new merge/ties > merge.yaml
""",
)
@click.argument("what", metavar="KIND[/METHOD]", shell_complete=complete_recipes)
@debug_option
def command(what: str) -> None:
    """Print a commented recipe."""
    from stillroom.recipes import comment_recipe

    kind, _, method = what.partition("/")
    click.echo(comment_recipe(kind, method or None), nl=False)
