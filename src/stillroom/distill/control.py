"""The control of a distillation: the same student, taught by the records alone.

Equal budget means: the same start, the same records in the same order, the same optimizer, schedule
and seed, as many optimizer steps, and as many tokens that bear loss. Where the student learns from
other text than the records (its own rollouts, a teacher's answers), the control still reads the
records alone; the number of records in its steps is then chosen so that the tokens come out equal,
and both counts are reported. The teacher's forward passes are no part of the budget. What is left
between student and control is what the teacher's distributions were worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distill.encode import Batch, Lesson, make_batch
from stillroom.distill.head import CHUNK_ROWS, Head, body_of, chunked_loss
from stillroom.distill.lessons import record_source
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.writing import write_student
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.train.loop import Loss, TrainSummary, train
from stillroom.train.lora import add_lora
from stillroom.train.precision import choose_precision, product_dtype
from stillroom.train.ranks import Ranks

__all__ = ["CONTROL", "CrossEntropy", "control_batch_size", "control_once", "train_control"]

CONTROL = "control"


class CrossEntropy:
    """Callable that ``train`` takes: cross-entropy of the records' own tokens, summed.

    Weights of lessons are left aside: where they follow from the teacher, the control must not know
    them.
    """

    def __init__(self, rows: int, precision: str = "float32") -> None:
        """Set up for the first ``rows`` tokens of the head; ``precision`` is that of products."""
        self.rows, self.dtype = rows, product_dtype(precision)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a micro-batch, summed over its positions."""
        hidden = body_of(model)(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat]  # (N, H)

        def score(
            logits: Tensor, start: int, stop: int
        ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
            labels = batch.labels[start:stop, None]
            logprobs = torch.log_softmax(logits, -1)
            gradient = logprobs.exp()
            gradient.scatter_add_(1, labels, -torch.ones_like(labels, dtype=gradient.dtype))
            return -logprobs.gather(1, labels)[:, 0], gradient, {}

        head = Head.of(model, self.rows)
        total, parts = chunked_loss(
            picked, head, score, tiles=True, chunk_rows=CHUNK_ROWS, dtype=self.dtype
        )
        return Loss(total, parts)


def control_batch_size(recipe: DistillRecipe, lessons: Sequence[Lesson], positions: int) -> int:
    """Return the records a step with which the control learns from about so many positions.

    Args:
        recipe: Its batch size stands where the student learned from the records themselves.
        lessons: The records as tokens.
        positions: What the student learned from, over the whole run.
    """
    mean = sum(len(lesson.positions) for lesson in lessons) / len(lessons)
    steps = recipe.train.count_steps(len(lessons))
    plain = mean * steps * recipe.train.batch_size
    if abs(positions / plain - 1) < 0.5 / recipe.train.batch_size:
        return recipe.train.batch_size
    return max(1, round(positions / (mean * steps)))


def control_once(
    recipe: DistillRecipe,
    job: Job,
    start: Path,
    lessons: Sequence[Lesson],
    rows: int,
    taught: TrainSummary,
    card: Mapping[str, Any],
) -> tuple[Path, TrainSummary]:
    """Train the control unless a killed run has; return its folder and what training came to.

    Args and errors are those of ``train_control``.
    """
    journal = job.journal("control")
    folder = (job.output if recipe.fidelity.keep_control else job.scratch) / CONTROL
    if CONTROL not in journal or not folder.is_dir():
        summary = train_control(recipe, job, start, lessons, rows, taught, card, folder)
        journal.put(CONTROL, asdict(summary))
    return folder, TrainSummary(**journal[CONTROL])


def train_control(
    recipe: DistillRecipe,
    job: Job,
    start: Path,
    lessons: Sequence[Lesson],
    rows: int,
    taught: TrainSummary,
    card: Mapping[str, Any],
    folder: Path,
) -> TrainSummary:
    """Train the control in a phase of its own, write its checkpoint, and return what it came to.

    It is written in the same type as the student, so that both are measured after the same
    rounding.

    Args:
        recipe: Of the job.
        job: The phase is ``control``; its state survives a kill as the student's does.
        start: The checkpoint that the student started from.
        lessons: What the student learned from.
        rows: Tokens of the vocabulary that take part.
        taught: What the student's training came to.
        card: Of the student.
        folder: Where its checkpoint is written.

    Raises:
        DataError: If a loss or gradient is not finite.
        Cancelled: If the user stopped it; ``--resume`` goes on.
    """
    model, _ = load_causal_lm(start, dtype="float32")
    device = next(model.parameters()).device
    batch_size = control_batch_size(recipe, lessons, taught.positions)
    settings = recipe.train.model_copy(update={"steps": taught.steps, "batch_size": batch_size})
    if recipe.train.lora:
        model = add_lora(model, recipe.train.lora, recipe.seed)
    source = record_source(
        recipe,
        lessons,
        lessons,
        lambda chosen: make_batch(chosen, None, device),
        [lesson.key for lesson in lessons],
        batch_size=batch_size,
    )
    objective = CrossEntropy(rows, choose_precision(recipe.train.precision, device))
    summary = train(
        model,
        source,
        objective,
        settings,
        job,
        seed=recipe.seed,
        name=CONTROL,
        ranks=Ranks(alone=True),
    )
    said = {
        **card,
        "title": f"{card['title']}: the control",
        "body": "The same student, trained by Stillroom on the same records for as long, by "
        "cross-entropy alone. It is there to be compared with.",
        "tags": ["control"],
    }
    write_student(model, folder, start, recipe.out, said)
    return summary
