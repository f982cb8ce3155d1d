"""``stillroom synth``: synthetic records."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["synth_group"]


@command_group(
    "synth",
    "stillroom synth preview recipes/synth-grounded-qa.yaml",
    "stillroom synth preview recipes/synth-grounded-qa.yaml --n 10",
    "stillroom synth drops records --method grounded",
    "stillroom synth export records --out dataset",
    package=__name__,
)
def synth_group() -> None:
    """Synthetic data: preview and export records, show dropped ones."""
