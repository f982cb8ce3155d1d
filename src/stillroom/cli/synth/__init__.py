"""``stillroom synth``: synthetic records, their deduplication and experiments on them."""

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
    "stillroom synth monitor human.jsonl made.jsonl --out report",
    "stillroom synth export records --out dataset",
    "stillroom synth generations human.jsonl --out report",
    "stillroom synth worth records --human held-out.jsonl --by filter --out report",
    package=__name__,
)
def synth_group() -> None:
    """Synthetic data: preview, deduplicate, export and study records."""
