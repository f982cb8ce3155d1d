"""Train a claim checker on judged claims about passages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.errors import count_noun
from stillroom.jobs.kind import JobKind
from stillroom.jobs.preflight import Estimate
from stillroom.models.hub import DEFAULT_EMBEDDER
from stillroom.rag.jobs.reader import ReaderTrainSettings
from stillroom.recipes import DISTINCT, Recipe, Reference
from stillroom.train.replay import TrainingReplayer

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "CheckerRecipe", "CheckerTrainSettings", "estimate", "run"]

_SECONDS_PER_TOKEN = 6e-4
_TOKENS_PER_CLAIM = 130
_BYTES_PER_TOKEN = 150_000


class CheckerTrainSettings(ReaderTrainSettings):
    """Training settings whose defaults are those of a claim checker."""

    epochs: float = Field(
        default=2.0, gt=0, le=1e6, description="passes over the claims, if 'steps' is null"
    )
    batch_size: int = Field(default=16, ge=1, description="claims per optimizer step")
    learning_rate: float = Field(default=3e-4, gt=0, description="peak learning rate")


class CheckerRecipe(Recipe):
    """Train a checker that tells whether a passage supports a claim."""

    kind: Literal["rag.checker"] = Field(default="rag.checker", description="train a claim checker")
    claims: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=1,
        examples=[["path/to/claims.jsonl"]],
        description="judged claims, as JSON lines of claim, passage and supported (true or false); "
        "perhaps title, document, and unsupported (spans of characters of the claim)",
    )
    base: Reference = Field(
        default=DEFAULT_EMBEDDER, description="encoder: a BERT or MPNet of sentence-transformers"
    )
    start: Reference | None = Field(
        default="builtin:checker",
        description="checker or reader to train further, of the same base and rank; null starts "
        "from the base",
    )
    validation: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="share of the documents whose claims choose the threshold and are not trained "
        "on",
    )
    precision: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="share of true claims among the supported ones that the threshold reaches on "
        "claims that were not trained on",
    )
    train: CheckerTrainSettings = Field(
        default_factory=CheckerTrainSettings,
        description="optimizer, schedule, batch size, low-rank updates",
    )


def run(recipe: CheckerRecipe, job: Job) -> Artifact:
    """Train a checker, choose its threshold on the claims of held-out documents, and write it.

    Raises:
        DataError: If the claims are too few, or a line of ``claims`` is none.
        CheckpointError: If the base is no BERT or MPNet, or ``start`` has another base or rank.
        Cancelled: If cancellation was requested; ``--resume`` continues to the same bytes.
    """
    from stillroom.rag.claim_checking.training_run import train_checker

    return train_checker(recipe, job)


def estimate(recipe: CheckerRecipe) -> Estimate:
    """Estimate memory and time from the number of claims."""
    paths = [Path(path) for path in recipe.claims]
    claims = sum(path.read_bytes().count(b"\n") for path in paths if path.is_file())
    steps = recipe.train.count_steps(max(1, round(claims * (1 - recipe.validation))))
    return Estimate(
        memory_bytes=1_200_000_000 + recipe.train.micro_tokens * _BYTES_PER_TOKEN,
        disk_bytes=40_000_000 + recipe.train.states_mb * 10**6,
        seconds=steps * recipe.train.batch_size * _TOKENS_PER_CLAIM * _SECONDS_PER_TOKEN,
        memory_knob="lower train.micro_tokens",
        disk_knob="lower train.states_mb or train.lora.rank",
        basis=f"{count_noun(steps, 'step')} of {recipe.train.batch_size} claims",
    )


JOB_KIND = JobKind(
    recipe=CheckerRecipe, run=run, estimate=estimate, extras=("train",), replayer=TrainingReplayer()
)
