"""``stillroom diffusion``: diffusion's own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "diffusion",
    cls=LazyGroup,
    lazy={
        "compare": (
            "stillroom.cli.diffusion_compare",
            "Train a diffusion model and its autoregressive twin, and compare them.",
        ),
        "convert": (
            "stillroom.cli.diffusion_convert",
            "Make a diffusion checkpoint of another: of any layout, or autoregressive.",
        ),
        "sample": (
            "stillroom.cli.diffusion_sample",
            "Write texts or fill holes, and show how the tokens come.",
        ),
        "score": (
            "stillroom.cli.diffusion_score",
            "Bound how likely a model finds records or an answer, with the error.",
        ),
        "train": (
            "stillroom.cli.diffusion_train",
            "Run a recipe of kind diffusion.",
        ),
        "tune": (
            "stillroom.cli.diffusion_tune",
            "Measure quality against readings and seconds, and write the best settings as a "
            "preset.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom diffusion sample trained "The still" --watch
  stillroom diffusion score trained --records records.jsonl
""",
)
def command() -> None:
    """Diffusion's own verbs."""
