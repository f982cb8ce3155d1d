"""``stillroom merge``: model merging, from plan to verification."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["merge_group"]


@command_group(
    "merge",
    {
        "adapters": ("merge.adapters", "Add LoRA adapters into one, in low-rank form."),
        "calibrate": ("merge.analysis", "Compute the statistics that fisher and regmean need."),
        "extract": ("merge.adapters", "Extract the changes of a fine-tuning."),
        "inspect": ("merge.analysis", "Show agreement and conflicts of models."),
        "learn": ("merge.analysis", "Learn the merge coefficients of every layer from records."),
        "plan": ("merge.run", "Print the inputs, outputs and resources of a merge."),
        "run": ("merge.run", "Run a merge recipe or an unchanged mergekit file."),
        "search": ("merge.analysis", "Show the trials and the result of a merge search."),
        "transplant": ("merge.run", "Give TARGET the tokenizer of DONOR, without training."),
        "verify": ("merge.run", "Recompute tensors of a merge and compare the bytes."),
    },
    "stillroom merge plan recipes/merge-ties.yaml",
    "stillroom run recipes/merge-ties.yaml --out merged",
)
def merge_group() -> None:
    """Merging: plan, run, inspect and verify merges of models and adapters."""
