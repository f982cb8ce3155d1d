"""``stillroom diffusion``: training, sampling and evaluation of diffusion language models."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["diffusion_group"]


@command_group(
    "diffusion",
    {
        "compare": (
            "diffusion.training",
            "Train a diffusion model and its autoregressive twin, and compare them.",
        ),
        "convert": (
            "diffusion.training",
            "Convert a checkpoint to diffusion: any published layout, or autoregressive.",
        ),
        "sample": (
            "diffusion.sampling",
            "Generate texts or fill holes, and show the order of the tokens.",
        ),
        "score": (
            "diffusion.score",
            "Estimate a lower bound on the log-likelihood of records or answers, with its error.",
        ),
        "tune": (
            "diffusion.sampling",
            "Measure quality against forward passes and time, and write the best preset.",
        ),
    },
    'stillroom diffusion sample trained "The still" --watch',
    "stillroom diffusion score trained --records records.jsonl",
)
def diffusion_group() -> None:
    """Diffusion: convert, sample, evaluate and tune diffusion language models."""
