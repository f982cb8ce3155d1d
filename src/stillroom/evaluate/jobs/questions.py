"""Train-test split of questions: a training (``learned``) and a held-out test part (``judged``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from stillroom.errors import DataError
from stillroom.evaluate.qa.questions import (
    QUESTIONS_FILE,
    JudgedQuestion,
    find_question_origin,
    read_question_set,
)
from stillroom.jobs import Estimate, Job, atomic_write
from stillroom.jobs.kind import JobKind
from stillroom.jobs.replay import JournalReplayer
from stillroom.provenance import Artifact, digest_json, make_parent
from stillroom.recipes import Recipe, Reference
from stillroom.records import Link
from stillroom.text.unicode import normalize_text

__all__ = ["JOB_KIND", "QuestionPartRecipe", "estimate", "run", "select_part"]


class QuestionPartRecipe(Recipe):
    """Take one of two parts of a question set that have no question in common."""

    kind: Literal["evaluate.questions"] = Field(
        default="evaluate.questions", description="take a part of a question set"
    )
    questions: Reference = Field(
        description="questions of people: CSV, JSON lines, SQuAD's JSON, records"
    )
    part: Literal["learned", "judged"] = Field(
        description="learned: questions that name their evidence, to train on; judged: all others"
    )
    share: float = Field(
        default=0.5, gt=0, lt=1, description="share of the questions with evidence to train on"
    )


def select_part(
    questions: list[JudgedQuestion], part: str, share: float, seed: int
) -> list[JudgedQuestion]:
    """Return the part ``learned`` or ``judged``, by seed.

    Questions with the same words or the same quoted evidence stay together.
    """
    groups = _group(questions)
    judged = []
    for question, group in zip(questions, groups, strict=True):
        position = int(digest_json([seed, group])[:8], 16) / 0x1_0000_0000
        is_learned = question.is_answerable and bool(question.evidence) and position < share
        if is_learned == (part == "learned"):
            judged.append(question)
    return judged


def _group(questions: list[JudgedQuestion]) -> list[str]:
    """Return each question's group, named by the first of all texts and quotes in it."""
    leaders: dict[str, str] = {}

    def find(key: str) -> str:
        while leaders.setdefault(key, key) != key:
            key = leaders[key]
        return key

    keys = []
    for question in questions:
        quotes = [f"quote {normalize_text(one.quote)}" for one in question.evidence if one.quote]
        keys.append([f"text {normalize_text(question.text)}", *quotes])
        for key in quotes:
            first, second = sorted((find(keys[-1][0]), find(key)))
            leaders[second] = first
    return [find(names[0]) for names in keys]


def run(recipe: QuestionPartRecipe, job: Job) -> Artifact:
    """Write the part as ``questions.jsonl``.

    Raises:
        DataError: If the questions cannot be read, or the part is empty (``data.no-questions``).
    """
    path = Path(recipe.questions)
    questions = read_question_set(path, warn=job.warn)
    selected = select_part(questions, recipe.part, recipe.share, recipe.seed)
    if not selected:
        raise DataError(
            f"none of {len(questions)} questions is in the part '{recipe.part}'",
            code="data.no-questions",
            where=recipe.questions,
            expected="questions with evidence to learn from, and others to judge",
            next="change share, or add questions",
        )
    job.say(f"{len(selected)} of {len(questions)} questions are in the part '{recipe.part}'")
    with atomic_write(job.output / QUESTIONS_FILE) as file:
        for question in selected:
            file.write(json.dumps(question.to_json(), ensure_ascii=False) + "\n")
    return job.finish(
        "records",
        parents=[make_parent("questions", path, job.out)],
        origin=find_question_origin(path).then(Link("evaluate.questions")).to_json(),
        details={"questions": len(selected), "of": len(questions), "part": recipe.part},
    )


def estimate(recipe: QuestionPartRecipe) -> Estimate:
    """Estimate nothing: the questions fit into memory."""
    return Estimate(basis=f"the part '{recipe.part}' of a question set")


JOB_KIND = JobKind(
    recipe=QuestionPartRecipe, run=run, estimate=estimate, replayer=JournalReplayer()
)
