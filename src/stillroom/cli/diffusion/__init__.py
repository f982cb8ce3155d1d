"""``stillroom diffusion``: training, sampling and evaluation of diffusion language models."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["diffusion_group"]


@command_group(
    "diffusion",
    'stillroom diffusion sample trained "The still" --watch',
    "stillroom diffusion score trained --records records.jsonl",
    package=__name__,
)
def diffusion_group() -> None:
    """Diffusion: convert, sample and evaluate diffusion language models."""
