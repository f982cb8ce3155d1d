"""Settings that job kinds share: the teacher's engine, targets, budgets and small students."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, Tag, model_validator

from stillroom.objects import resolve_local
from stillroom.recipes import DISTINCT, EngineChoice, Recipe, Reference, Settings, choose_by_key
from stillroom.train.settings import TrainSettings

__all__ = [
    "TRAINING_FLOPS_PER_SECOND",
    "BudgetSettings",
    "CheckpointStudent",
    "EngineSettings",
    "FreshStudent",
    "RecordFilesRecipe",
    "RecordTargets",
    "Student",
]

TRAINING_FLOPS_PER_SECOND = 12e9
"""Assumed throughput of student training on a CPU, for estimates."""


class RecordTargets(Settings):
    """Numbers of records at which the generation stops.

    By default 100 and 25 for one generator; all that a pipeline of steps gives.
    """

    train: int | None = Field(
        default=None,
        ge=1,
        description="records for training; by default 100 for a generator, unlimited for steps",
    )
    held_out: int | None = Field(
        default=None,
        ge=0,
        description="records for evaluation; by default 25 for a generator, unlimited for steps",
    )


class EngineSettings(EngineChoice):
    """How the teacher runs, and where: ``ray``, or ``{ray: {...}}`` among the other keys."""

    backend: str = Field(default="auto", description="engine that runs the teacher")
    num_threads: int | None = Field(default=None, ge=1, description="threads; default all cores")
    context_length: int | None = Field(
        default=None,
        ge=256,
        description="tokens of prompt and completion together; default the model's",
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1024, description="concurrent requests to an endpoint; default 16"
    )
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="requests per minute to an endpoint; default unlimited"
    )
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="tokens per minute to an endpoint; default unlimited"
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds that an endpoint may take for an answer; default 300 to the first "
        "byte, 900 in total",
    )
    fallbacks: tuple[str, ...] = Field(
        default=(),
        description="further endpoints (http://host/v1#model), used when the first fails",
    )
    weights: tuple[float, ...] = Field(
        default=(), description="shares of the requests: the model's own, then the fallbacks'"
    )
    hedge_after_s: float | None = Field(
        default=None,
        gt=0,
        description="send a request to another endpoint too after this many seconds without an "
        "answer",
    )


class RecordFilesRecipe(Recipe):
    """Settings of a kind that reads files of records."""

    records: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=1, description="files or artifacts of records"
    )

    @property
    def paths(self) -> tuple[Path, ...]:
        """Local paths of the records."""
        return tuple(map(resolve_local, self.records))


class BudgetSettings(Settings):
    """Bounds that stop the generation early; records kept so far are written.

    The held-out side, which runs first, is limited to its share of the targets.
    """

    requests: int | None = Field(
        default=None, ge=1, description="maximum requests; null is unlimited"
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens of prompts and completions; null is unlimited",
    )
    cost: float | None = Field(
        default=None, gt=0, description="maximum cost, by the prices below; null is unlimited"
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="maximum minutes of this session; null is unlimited; the records kept then "
        "depend on the clock",
    )
    input_price: float = Field(default=0.0, ge=0, description="price of a million prompt tokens")
    output_price: float = Field(
        default=0.0, ge=0, description="price of a million completion tokens"
    )

    @model_validator(mode="after")
    def _has_prices(self) -> Self:
        if self.cost is not None and not (self.input_price or self.output_price):
            raise ValueError(
                "cost needs input_price and output_price, the prices it is computed from"
            )
        return self


class _StudentTraining(TrainSettings):
    """Training of a small student."""

    steps: int | None = Field(
        default=120, ge=1, description="optimizer steps; null derives them from 'epochs'"
    )
    epochs: float = Field(
        default=1.0, gt=0, le=1e6, description="passes over the records, if 'steps' is null"
    )
    batch_size: int = Field(default=16, ge=1, description="records per optimizer step")
    learning_rate: float = Field(default=4e-3, gt=0, description="peak learning rate")
    log_every: int = Field(
        default=30, ge=1, description="optimizer steps between rows of metrics.jsonl"
    )


class _FreshTraining(_StudentTraining):
    """Training of a student with random weights."""

    micro_tokens: int = Field(
        default=4096, ge=1, description="maximum tokens (padding included) per micro-batch"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="matrix products; weights stay float32"
    )


class _CheckpointTraining(_StudentTraining):
    """Training of a student that starts from a checkpoint."""

    micro_tokens: int = Field(
        default=1024, ge=1, description="maximum tokens (padding included) per micro-batch"
    )


class FreshStudent(Settings):
    """A student with random weights and a tokenizer of its own."""

    layers: int = Field(default=2, ge=1, description="number of layers")
    hidden: int = Field(default=96, ge=16, multiple_of=16, description="hidden size")
    vocabulary: int = Field(default=768, ge=260, description="vocabulary size of the tokenizer")
    max_tokens: int = Field(default=96, ge=8, description="maximum tokens of a record")
    train: _FreshTraining = Field(default_factory=_FreshTraining, description="training settings")

    @property
    def start(self) -> str:
        """Initial weights, as text."""
        return "fresh"

    def count_parameters(self) -> int:
        """Return the number of parameters, without creating the student."""
        layer = 3 * self.hidden * self.hidden + 3 * 4 * self.hidden * self.hidden
        return self.vocabulary * self.hidden + self.layers * layer


class CheckpointStudent(Settings):
    """A student that starts from a checkpoint."""

    checkpoint: Reference = Field(description="initial weights and tokenizer")
    max_tokens: int = Field(default=96, ge=8, description="maximum tokens of a record")
    train: _CheckpointTraining = Field(
        default_factory=_CheckpointTraining, description="training settings; lora trains adapters"
    )

    @property
    def start(self) -> str:
        """Initial weights, as text."""
        return self.checkpoint

    def count_parameters(self) -> int:
        """Return the number of parameters of the checkpoint."""
        from stillroom.checkpoints import Checkpoint
        from stillroom.models import resolve_checkpoint

        return Checkpoint.open(resolve_checkpoint(self.checkpoint)).parameters


Student = Annotated[
    Annotated[FreshStudent, Tag("FreshStudent")]
    | Annotated[CheckpointStudent, Tag("CheckpointStudent")],
    choose_by_key(
        {"checkpoint": "CheckpointStudent"},
        "settings of a student, or its checkpoint",
        default="FreshStudent",
    ),
]
"""A small student that is trained to measure its training data."""
