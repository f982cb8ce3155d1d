"""``stillroom synth``: synthetic records, their deduplication and experiments on them."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["synth_group"]


@click.group(
    "synth",
    cls=LazyGroup,
    lazy={
        "decontaminate": (
            "stillroom.cli.synth.dedup:decontaminate_command",
            "Take what holds a test question out of files of records.",
        ),
        "dedup": (
            "stillroom.cli.synth.dedup:dedup_command",
            "Take near duplicates out of files of records.",
        ),
        "drops": (
            "stillroom.cli.synth.records:drops_command",
            "Show what a run dropped, row beside reason.",
        ),
        "export": (
            "stillroom.cli.synth.records:export_command",
            "Write records as a dataset with a card and Croissant metadata.",
        ),
        "generations": (
            "stillroom.cli.synth.experiments:generations_command",
            "Train students on what students wrote, generation by generation, and plot what it "
            "costs.",
        ),
        "monitor": (
            "stillroom.cli.synth.experiments:monitor_command",
            "Compare generations of data with the first, which people wrote, and warn of collapse.",
        ),
        "preview": (
            "stillroom.cli.synth.records:preview_command",
            "Make a few records and print them.",
        ),
        "worth": (
            "stillroom.cli.synth.experiments:worth_command",
            "Train small students on subsets of records and say which subsets make them better.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom synth preview recipes/synth-grounded-qa.yaml
  stillroom synth preview recipes/synth-grounded-qa.yaml --n 10
  stillroom synth drops records --method grounded
  stillroom synth dedup records.jsonl --out clean
  stillroom synth decontaminate records.jsonl --against test.jsonl --out clean
  stillroom synth monitor human.jsonl made.jsonl --out report
  stillroom synth export records --out dataset
  stillroom synth generations human.jsonl --out report
  stillroom synth worth records --human held-out.jsonl --by filter --out report
""",
)
def synth_group() -> None:
    """Synthetic data's own verbs."""
