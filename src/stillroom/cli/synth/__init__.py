"""``stillroom synth``: synthetic records, their deduplication and experiments on them."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["synth_group"]


@command_group(
    "synth",
    {
        "decontaminate": ("synth.dedup", "Remove records that contain a test question."),
        "dedup": ("synth.dedup", "Remove near duplicates from files of records."),
        "drops": ("synth.records", "Show the dropped rows of a run with their reasons."),
        "export": (
            "synth.records",
            "Write records as a dataset with a card and Croissant metadata.",
        ),
        "generations": (
            "synth.experiments",
            "Train students on outputs of students over generations, and plot the degradation.",
        ),
        "monitor": (
            "synth.experiments",
            "Compare generations of data with the first, human one, and warn of collapse.",
        ),
        "preview": ("synth.records", "Generate a few records and print them."),
        "worth": (
            "synth.experiments",
            "Measure the value of subsets of records by training small students on them.",
        ),
    },
    "stillroom synth preview recipes/synth-grounded-qa.yaml",
    "stillroom synth preview recipes/synth-grounded-qa.yaml --n 10",
    "stillroom synth drops records --method grounded",
    "stillroom synth dedup records.jsonl --out clean",
    "stillroom synth decontaminate records.jsonl --against test.jsonl --out clean",
    "stillroom synth monitor human.jsonl made.jsonl --out report",
    "stillroom synth export records --out dataset",
    "stillroom synth generations human.jsonl --out report",
    "stillroom synth worth records --human held-out.jsonl --by filter --out report",
)
def synth_group() -> None:
    """Synthetic data: preview, deduplicate, export and study records."""
