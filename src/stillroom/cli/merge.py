"""``stillroom merge``: merging's own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "merge",
    cls=LazyGroup,
    lazy={"plan": ("stillroom.cli.merge_plan", "Print what a merge will read, write and need.")},
    epilog="""
\b
Examples:
  stillroom merge plan recipes/merge-ties.yaml
  stillroom run recipes/merge-ties.yaml --out merged
""",
)
def command() -> None:
    """Merging's own verbs."""
