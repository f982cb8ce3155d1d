"""Train a claim checker on planted edits of an index's sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stillroom.jobs.kind import JobKind
from stillroom.jobs.machine import Estimate
from stillroom.rag.index_settings import DEFAULT_EMBEDDER
from stillroom.recipes import Recipe, Reference
from stillroom.train.replay import TrainingReplayer
from stillroom.train.settings import LoraSettings, TrainSettings

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = ["JOB_KIND", "CheckerRecipe", "CheckerTrainSettings", "estimate", "run"]

_SECONDS_PER_TOKEN = 6e-4
_TOKENS_PER_CLAIM = 110
_BYTES_PER_TOKEN = 150_000


class CheckerTrainSettings(TrainSettings):
    """Training settings whose defaults are those of a checker; only low-rank updates are trained."""

    epochs: float = Field(
        default=1.0, gt=0, description="passes over the claims, if 'steps' is null"
    )
    batch_size: int = Field(default=16, ge=1, description="claims per optimizer step")
    micro_tokens: int = Field(
        default=1024,
        ge=1,
        description="maximum tokens (padding included) per micro-batch; lower saves memory",
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW beta2 (second moment)")
    lora: LoraSettings = Field(
        default_factory=lambda: LoraSettings(rank=8, alpha=16), description="low-rank updates"
    )


class CheckerRecipe(Recipe):
    """Train a checker that tells whether a passage supports a claim."""

    kind: Literal["rag.checker"] = Field(default="rag.checker", description="train a claim checker")
    index: Reference = Field(description="index artifact of the documents, in English")
    claims: tuple[Reference, ...] = Field(
        default=(),
        examples=[["path/to/claims.jsonl"]],
        description="judged claims, as JSON lines of claim, passage and supported (true or false)",
    )
    repeats: int = Field(
        default=4, ge=1, le=100, description="times that a judged claim is among those of a pass"
    )
    base: Reference = Field(
        default=DEFAULT_EMBEDDER, description="encoder: a BERT checkpoint of sentence-transformers"
    )
    sentences: int = Field(
        default=2,
        ge=1,
        le=50,
        description="sentences of a passage from which a true and a wrong claim each are made",
    )
    validation: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the documents whose claims calibrate the checker and are not "
        "trained on",
    )
    max_validation: int = Field(
        default=600, ge=10, description="maximum number of validation claims"
    )
    precision: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="share of true claims among the supported validation claims that the "
        "threshold reaches",
    )
    train: CheckerTrainSettings = Field(
        default_factory=CheckerTrainSettings,
        description="optimizer, schedule, batch size, low-rank updates",
    )


def run(recipe: CheckerRecipe, job: Job) -> Artifact:
    """Plant edits, train a checker on them, calibrate it on held-out documents, and write it.

    Raises:
        DataError: If no claim can be made, or a line of ``claims`` is none.
        CheckpointError: If the base is no plain BERT.
        Cancelled: If cancellation was requested; ``--resume`` continues to the same bytes.
    """
    from stillroom.rag.claim_checking.training_run import train_checker

    return train_checker(recipe, job)


def estimate(recipe: CheckerRecipe) -> Estimate:
    """Estimate memory and time from the steps; a full pass depends on the index."""
    steps = recipe.train.steps or 1000
    tokens = steps * recipe.train.batch_size * _TOKENS_PER_CLAIM
    return Estimate(
        memory_bytes=1_000_000_000 + recipe.train.micro_tokens * _BYTES_PER_TOKEN,
        disk_bytes=10_000_000 + recipe.train.states_mb * 10**6,
        seconds=tokens * _SECONDS_PER_TOKEN,
        memory_knob="lower train.micro_tokens",
        disk_knob="lower train.states_mb or train.lora.rank",
        basis=f"{steps} steps of {recipe.train.batch_size} claims",
    )


JOB_KIND = JobKind(
    recipe=CheckerRecipe,
    run=run,
    estimate=estimate,
    extras=("train",),
    replayer=TrainingReplayer(),
)
