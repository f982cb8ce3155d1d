"""``stillroom distill``: distillation's own verbs."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["command"]


@click.group(
    "distill",
    cls=LazyGroup,
    lazy={
        "align": (
            "stillroom.cli.distill_align",
            "Show how well two tokenizers align on your texts.",
        ),
        "preflight": (
            "stillroom.cli.distill_preflight",
            "Say what would go wrong in a distillation, before it starts.",
        ),
        "capture": (
            "stillroom.cli.distill_capture",
            "Fill a teacher cache for a recipe without training.",
        ),
        "import": (
            "stillroom.cli.distill_import",
            "Make a teacher cache of log-probabilities captured elsewhere.",
        ),
        "verify": (
            "stillroom.cli.distill_verify",
            "Check a teacher cache, and score a sample of it again.",
        ),
        "prune": (
            "stillroom.cli.distill_prune",
            "Make a smaller student from a teacher's own layers, heads and channels.",
        ),
        "texts": (
            "stillroom.cli.distill_texts",
            "Cut documents into records that a student learns as they stand.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom distill align hub:HuggingFaceTB/SmolLM2-135M-Instruct ./student notes.txt
  stillroom distill align ./teacher ./student/tokenizer.json records.jsonl --json
""",
)
def command() -> None:
    """Distillation's own verbs."""
