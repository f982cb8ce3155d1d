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
            "Remove records that contain a test question.",
        ),
        "dedup": (
            "stillroom.cli.synth.dedup:dedup_command",
            "Remove near duplicates from files of records.",
        ),
        "drops": (
            "stillroom.cli.synth.records:drops_command",
            "Show the dropped rows of a run with their reasons.",
        ),
        "export": (
            "stillroom.cli.synth.records:export_command",
            "Write records as a dataset with a card and Croissant metadata.",
        ),
        "generations": (
            "stillroom.cli.synth.experiments:generations_command",
            "Train students on outputs of students over generations, and plot the degradation.",
        ),
        "monitor": (
            "stillroom.cli.synth.experiments:monitor_command",
            "Compare generations of data with the first, human one, and warn of collapse.",
        ),
        "preview": (
            "stillroom.cli.synth.records:preview_command",
            "Generate a few records and print them.",
        ),
        "worth": (
            "stillroom.cli.synth.experiments:worth_command",
            "Measure the value of subsets of records by training small students on them.",
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
    """Synthetic data: preview, deduplicate, export and study records."""
