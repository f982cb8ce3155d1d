"""``stillroom diffusion``: training, sampling and evaluation of diffusion language models."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["diffusion_group"]


@click.group(
    "diffusion",
    cls=LazyGroup,
    lazy={
        "compare": (
            "stillroom.cli.diffusion.training:compare_command",
            "Train a diffusion model and its autoregressive twin, and compare them.",
        ),
        "convert": (
            "stillroom.cli.diffusion.training:convert_command",
            "Make a diffusion checkpoint of another: of any layout, or autoregressive.",
        ),
        "sample": (
            "stillroom.cli.diffusion.sampling:sample_command",
            "Write texts or fill holes, and show how the tokens come.",
        ),
        "score": (
            "stillroom.cli.diffusion.score:score_command",
            "Bound how likely a model finds records or an answer, with the error.",
        ),
        "train": (
            "stillroom.cli.diffusion.training:train_command",
            "Run a recipe of kind diffusion.",
        ),
        "tune": (
            "stillroom.cli.diffusion.sampling:tune_command",
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
def diffusion_group() -> None:
    """Diffusion's own verbs."""
