"""``stillroom synth``: synthetic records and their deduplication."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["synth_group"]


@command_group(
    "synth",
    "stillroom synth preview recipes/synth-grounded-qa.yaml",
    "stillroom synth preview recipes/synth-grounded-qa.yaml --n 10",
    "stillroom synth drops records --method grounded",
    "stillroom synth dedup records.jsonl --out clean",
    "stillroom synth decontaminate records.jsonl --against test.jsonl --out clean",
    "stillroom synth export records --out dataset",
    package=__name__,
)
def synth_group() -> None:
    """Synthetic data: preview, deduplicate and export records."""
