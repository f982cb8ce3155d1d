"""Render questions as the prompt that `ask` serves, with a quote or a refusal as the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.errors import count_noun
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import Estimate
from stillroom.rag.jobs.inputs import IndexInput, is_path
from stillroom.recipes import DISTINCT, Recipe, Reference

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "OpenBookRecipe", "estimate", "run"]

_SECONDS_PER_QUESTION = 0.1


class OpenBookRecipe(IndexInput, Recipe):
    """Records that train a model for the prompt by which it will answer."""

    kind: Literal["rag.open_book"] = Field(
        default="rag.open_book", description="records in the served prompt"
    )
    questions: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=1,
        examples=[["path/to/records"]],
        description="questions that name their evidence: records, JSON lines, SQuAD's JSON",
    )
    passages: int = Field(
        default=5,
        ge=1,
        le=20,
        description="most passages of a prompt; of each record a number from 1 to this is drawn",
    )
    refusals: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of the records whose passages do not answer, in turn: the answering "
        "passages removed, another name or number asked for, a question about another document",
    )
    max_copied: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="leave out questions of whose words, weighted by rarity, a larger share stands "
        "in the sentence that answers: they teach to look for words",
    )
    renderings: int = Field(default=1, ge=1, le=20, description="records of each question")


def run(recipe: OpenBookRecipe, job: Job) -> Artifact:
    """Render the records; see ``stillroom.rag.generation.open_book.write_open_book``.

    Raises:
        DataError: If no question is left whose evidence stands in a passage that is found.
    """
    from stillroom.rag.generation.open_book import write_open_book

    return write_open_book(recipe, job)


def estimate(recipe: OpenBookRecipe) -> Estimate:
    """Estimate the time of the searches."""
    if not is_path(*recipe.questions):
        return Estimate()
    from stillroom.evaluate.qa.questions import read_question_set

    paths = [Path(path) for path in recipe.questions]
    count = sum(len(read_question_set(path, every=True)) for path in paths if path.exists())
    return Estimate(
        memory_bytes=600_000_000,
        seconds=count * _SECONDS_PER_QUESTION,
        basis=f"one search for each of {count_noun(count, 'question')}",
    )


JOB_KIND = JobKind(recipe=OpenBookRecipe, run=run, estimate=estimate)
