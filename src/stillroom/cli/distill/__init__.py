"""``stillroom distill``: preparation of distillation, and teacher caches."""

from __future__ import annotations

import click

from stillroom.cli.app import LazyGroup

__all__ = ["distill_group"]


@click.group(
    "distill",
    cls=LazyGroup,
    lazy={
        "align": (
            "stillroom.cli.distill.preparation:align_command",
            "Show how well two tokenizers align on your texts.",
        ),
        "preflight": (
            "stillroom.cli.distill.preparation:preflight_command",
            "Check a distillation for problems before it starts.",
        ),
        "capture": (
            "stillroom.cli.distill.teacher_cache:capture_command",
            "Fill a teacher cache for a recipe without training.",
        ),
        "import": (
            "stillroom.cli.distill.teacher_cache:import_command",
            "Import log-probabilities captured elsewhere into a teacher cache.",
        ),
        "verify": (
            "stillroom.cli.distill.teacher_cache:verify_command",
            "Check a teacher cache, and score a sample of it again.",
        ),
        "prune": (
            "stillroom.cli.distill.preparation:prune_command",
            "Make a smaller student from a teacher's own layers, heads and channels.",
        ),
        "texts": (
            "stillroom.cli.distill.preparation:texts_command",
            "Cut documents into records of plain training text.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom distill align hub:HuggingFaceTB/SmolLM2-135M-Instruct ./student notes.txt
  stillroom distill align ./teacher ./student/tokenizer.json records.jsonl --json
""",
)
def distill_group() -> None:
    """Distillation: check and prepare a run, prune a student, manage logit caches."""
