"""``stillroom checkpoint``: what can be done with a finished checkpoint."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "checkpoint",
    cls=LazyGroup,
    lazy={
        "card": (
            "stillroom.cli.checkpoint_card",
            "Write a checkpoint's model card from its lineage.",
        ),
        "export": (
            "stillroom.cli.checkpoint_export",
            "Write a checkpoint as a GGUF file that llama.cpp runs.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom checkpoint card run --out README.md
  stillroom checkpoint export run --to gguf --type q8_0 --out student.gguf --check
""",
)
def command() -> None:
    """Checkpoints' own verbs."""
