"""``stillroom synth``: synthetic data's own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "synth",
    cls=LazyGroup,
    lazy={"preview": ("stillroom.cli.synth_preview", "Make a few records and print them.")},
    epilog="""
\b
Examples:
  stillroom synth preview recipes/synth-grounded-qa.yaml
  stillroom synth preview recipes/synth-grounded-qa.yaml --n 10
""",
)
def command() -> None:
    """Synthetic data's own verbs."""
