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
            "Convert a checkpoint to diffusion: any published layout, or autoregressive.",
        ),
        "sample": (
            "stillroom.cli.diffusion.sampling:sample_command",
            "Generate texts or fill holes, and show the order of the tokens.",
        ),
        "score": (
            "stillroom.cli.diffusion.score:score_command",
            "Estimate a lower bound on the log-likelihood of records or answers, with its error.",
        ),
        "tune": (
            "stillroom.cli.diffusion.sampling:tune_command",
            "Measure quality against forward passes and time, and write the best preset.",
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
    """Diffusion: convert, sample, evaluate and tune diffusion language models."""
