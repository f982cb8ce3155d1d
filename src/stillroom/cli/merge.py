"""``stillroom merge``: merging's own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "merge",
    cls=LazyGroup,
    lazy={
        "adapters": (
            "stillroom.cli.merge_adapters",
            "Add LoRA adapters up to one, in their own space.",
        ),
        "calibrate": (
            "stillroom.cli.merge_calibrate",
            "Gather what fisher and regmean weigh models by.",
        ),
        "extract": ("stillroom.cli.merge_extract", "Take out what a fine-tuning changed."),
        "inspect": ("stillroom.cli.merge_inspect", "Show where models agree and where they fight."),
        "learn": (
            "stillroom.cli.merge_learn",
            "Learn on records how much of each model every layer takes.",
        ),
        "plan": ("stillroom.cli.merge_plan", "Print what a merge will read, write and need."),
        "run": (
            "stillroom.cli.merge_run",
            "Merge as a recipe says; a mergekit file runs unchanged.",
        ),
        "search": ("stillroom.cli.merge_search", "Show what a search of merges tried and found."),
        "transplant": (
            "stillroom.cli.merge_transplant",
            "Give TARGET the tokenizer of DONOR, without training.",
        ),
        "verify": (
            "stillroom.cli.merge_verify",
            "Make a merge's tensors again and compare the bytes.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom merge plan recipes/merge-ties.yaml
  stillroom run recipes/merge-ties.yaml --out merged
""",
)
def command() -> None:
    """Merging's own verbs."""
