"""``stillroom merge``: model merging, from plan to verification."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["merge_group"]


@click.group(
    "merge",
    cls=LazyGroup,
    lazy={
        "adapters": (
            "stillroom.cli.merge.adapters:adapters_command",
            "Add LoRA adapters up to one, in their own space.",
        ),
        "calibrate": (
            "stillroom.cli.merge.calibration:calibrate_command",
            "Gather what fisher and regmean weigh models by.",
        ),
        "extract": (
            "stillroom.cli.merge.adapters:extract_command",
            "Take out what a fine-tuning changed.",
        ),
        "inspect": (
            "stillroom.cli.merge.inspection:inspect_command",
            "Show where models agree and where they fight.",
        ),
        "learn": (
            "stillroom.cli.merge.calibration:learn_command",
            "Learn on records how much of each model every layer takes.",
        ),
        "plan": (
            "stillroom.cli.merge.run:plan_command",
            "Print what a merge will read, write and need.",
        ),
        "run": (
            "stillroom.cli.merge.run:run_command",
            "Merge as a recipe says; a mergekit file runs unchanged.",
        ),
        "search": (
            "stillroom.cli.merge.inspection:search_command",
            "Show what a search of merges tried and found.",
        ),
        "transplant": (
            "stillroom.cli.merge.run:transplant_command",
            "Give TARGET the tokenizer of DONOR, without training.",
        ),
        "verify": (
            "stillroom.cli.merge.run:verify_command",
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
def merge_group() -> None:
    """Merging's own verbs."""
