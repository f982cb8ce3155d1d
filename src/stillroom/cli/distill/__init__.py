"""``stillroom distill``: preparation of distillation, and teacher caches."""

from __future__ import annotations

from stillroom.cli.app import command_group

__all__ = ["distill_group"]


@command_group(
    "distill",
    {
        "align": ("distill.preparation", "Show how well two tokenizers align on your texts."),
        "preflight": ("distill.preparation", "Check a distillation for problems before it starts."),
        "capture": ("distill.teacher_cache", "Fill a teacher cache for a recipe without training."),
        "import": (
            "distill.teacher_cache",
            "Import log-probabilities captured elsewhere into a teacher cache.",
        ),
        "verify": (
            "distill.teacher_cache",
            "Check a teacher cache, and score a sample of it again.",
        ),
        "prune": (
            "distill.preparation",
            "Make a smaller student from a teacher's own layers, heads and channels.",
        ),
        "texts": ("distill.preparation", "Cut documents into records of plain training text."),
    },
    "stillroom distill align hub:HuggingFaceTB/SmolLM2-135M-Instruct ./student notes.txt",
    "stillroom distill align ./teacher ./student/tokenizer.json records.jsonl --json",
)
def distill_group() -> None:
    """Distillation: check and prepare a run, prune a student, manage logit caches."""
