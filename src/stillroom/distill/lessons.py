"""Which records are learned from, which only measured, and both as lessons.

How records are split is the floor's: ``stillroom.train.split``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from stillroom.distill.encode import Lesson, encode_lessons
from stillroom.distill.recipe import DistillRecipe
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.train.source import MicroBatch, RecordSource
from stillroom.train.split import Split, is_learned, split_records

__all__ = [
    "Split",
    "is_learned",
    "make_lessons",
    "read_in_steps",
    "record_source",
    "split_records",
]

T = TypeVar("T")
B = TypeVar("B", bound=MicroBatch)


def make_lessons(
    recipe: DistillRecipe, split: Split, tokenizer: Any, job: Job
) -> tuple[list[Lesson], dict[str, Any]]:
    """Return the training records as lessons, and what was counted on the way.

    Raises:
        DataError: If no record has a position that bears loss.
    """
    with job.phase("encode", len(split.train), "records") as progress:
        lessons, counts = encode_lessons(
            tokenizer,
            split.train,
            max_tokens=recipe.max_tokens,
            include_prompt=recipe.include_prompt,
            on_done=progress.advance,
        )
    found = {**counts.to_json(), "passed_over": split.passed_over}
    if counts.cut or counts.left_out or split.passed_over:
        job.say(
            f"{counts.cut} records were cut at {recipe.max_tokens} tokens ({counts.tokens_cut} "
            f"tokens), {counts.left_out} left out, passed over: {split.passed_over or 'none'}"
        )
    if not lessons:
        raise DataError(
            "no record has a token to learn",
            code="distill.no-positions",
            where="records",
            expected="assistant messages within max_tokens",
            next=f"raise max_tokens above {recipe.max_tokens}",
        )
    return lessons, found


def record_source(
    recipe: DistillRecipe,
    lessons: Sequence[Lesson],
    items: Sequence[T],
    load: Callable[[Sequence[T]], B],
    ids: Sequence[str],
    *,
    batch_size: int = 0,
) -> RecordSource[T, B]:
    """Return the micro-batches of some lessons, in the order that the recipe's seed gives.

    Args:
        recipe: Its batch size, micro-batch and seed.
        lessons: What the student reads: their tokens and positions are counted.
        items: What ``load`` makes a micro-batch of, one a lesson.
        load: Does.
        ids: What each item's loss follows from; a resumed run must bring the same.
        batch_size: Records a step, where it is not the recipe's.
    """
    return RecordSource(
        items,
        ids=ids,
        lengths=[len(lesson.ids) for lesson in lessons],
        valid=[len(lesson.positions) for lesson in lessons],
        load=load,
        batch_size=batch_size or recipe.train.batch_size,
        micro_tokens=recipe.train.micro_tokens,
        seed=recipe.seed,
    )


def read_in_steps(recipe: DistillRecipe, items: Sequence[T]) -> list[T]:
    """Return the items that the recipe's steps ever reach, in their own order.

    A run of fewer steps than an epoch reads some only, and a teacher need not speak of the others.

    Args:
        recipe: Its steps, batch size and seed.
        items: As many as ``record_source`` is given, in the same order. With rollouts all are
            returned: which records prompt is known later.
    """
    settings, count = recipe.train, len(items)
    steps = settings.count_steps(count)
    if steps * settings.batch_size >= count or recipe.rollouts is not None:
        return list(items)
    unknown = [0] * count
    order = RecordSource[T, Any](
        items,
        ids=[""] * count,
        lengths=unknown,
        valid=unknown,
        load=list,
        batch_size=settings.batch_size,
        micro_tokens=settings.micro_tokens,
        seed=recipe.seed,
    )
    reached = {number for step in range(steps) for number in order.chosen(step)}
    return [item for number, item in enumerate(items) if number in reached]
