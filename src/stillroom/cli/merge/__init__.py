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
            "Add LoRA adapters into one, in low-rank form.",
        ),
        "calibrate": (
            "stillroom.cli.merge.calibration:calibrate_command",
            "Compute the statistics that fisher and regmean need.",
        ),
        "extract": (
            "stillroom.cli.merge.adapters:extract_command",
            "Extract the changes of a fine-tuning.",
        ),
        "inspect": (
            "stillroom.cli.merge.inspection:inspect_command",
            "Show agreement and conflicts of models.",
        ),
        "learn": (
            "stillroom.cli.merge.calibration:learn_command",
            "Learn the merge coefficients of every layer from records.",
        ),
        "plan": (
            "stillroom.cli.merge.run:plan_command",
            "Print the inputs, outputs and resources of a merge.",
        ),
        "run": (
            "stillroom.cli.merge.run:run_command",
            "Run a merge recipe or an unchanged mergekit file.",
        ),
        "search": (
            "stillroom.cli.merge.inspection:search_command",
            "Show the trials and the result of a merge search.",
        ),
        "transplant": (
            "stillroom.cli.merge.run:transplant_command",
            "Give TARGET the tokenizer of DONOR, without training.",
        ),
        "verify": (
            "stillroom.cli.merge.run:verify_command",
            "Recompute tensors of a merge and compare the bytes.",
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
    """Merging: plan, run, inspect and verify merges of models and adapters."""
