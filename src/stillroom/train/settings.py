"""Training settings: LoRA (r, target_modules), learning-rate schedule (warmup); no torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.recipes import Settings

__all__ = [
    "MAX_THREADS",
    "LoraSettings",
    "TrainSettings",
    "compute_learning_rate",
]

MAX_THREADS = 4096


class LoraSettings(Settings):
    """LoRA: train low-rank updates instead of the weights, and merge them at the end."""

    rank: int = Field(default=16, ge=1, description="rank of each low-rank update")
    alpha: float = Field(default=32.0, gt=0, description="updates are scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before each update")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(
        default="all-linear",
        description="names of the adapted linear layers (target_modules); 'all-linear' adapts all",
    )
    keep_adapter: bool = Field(
        default=False,
        description="also write the low-rank weights as a peft folder in output/adapter",
    )


class TrainSettings(Settings):
    """Optimizer, schedule, batch size, precision and logging of a training run.

    There is no ``gradient_accumulation_steps``: ``micro_tokens`` cuts a step into micro-batches;
    and no ``save_total_limit``: a saved state replaces the one before.
    """

    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; null derives them from 'epochs'"
    )
    epochs: float = Field(
        default=3.0, gt=0, le=1e6, description="passes over the records, if 'steps' is null"
    )
    batch_size: int = Field(
        default=4, ge=1, description="records per optimizer step, over all ranks"
    )
    micro_tokens: int = Field(
        default=2048,
        ge=1,
        description="maximum tokens (padding included) per micro-batch; lower saves memory",
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="learning-rate schedule after the warmup"
    )
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps for warmup")
    final_share: float = Field(
        default=0.05, ge=0, le=1, description="final share of the peak for cosine and linear"
    )
    weight_decay: float = Field(
        default=0.01, ge=0, description="weight decay of matrices; vectors have none"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW beta1 (first moment)")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW beta2 (second moment)")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="maximum gradient norm; null does not clip"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="matrix products; weights stay float32; auto is bfloat16 where it is native",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, more time",
    )
    lora: LoraSettings | None = Field(
        default=None, description="train low-rank updates only; null trains all weights"
    )
    sharding: Literal["none", "fsdp"] = Field(
        default="none",
        description="with several processes: none keeps a full student in each; fsdp shards "
        "weights, gradients and moments, and gathers each layer while it is used",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=MAX_THREADS,
        description="CPU threads per process; 0 uses every core, or its share with several "
        "processes; another number may change the last bits",
    )
    save_every_s: float = Field(
        default=120.0,
        ge=0,
        description="seconds between saved states for --resume; 0 saves every step",
    )
    states_mb: int = Field(
        default=128,
        ge=0,
        description="MB of training states kept with the job, from which 'verify --replay' starts; "
        "0 keeps none, and a replay takes the steps from the first one",
    )
    log_every: int = Field(
        default=1, ge=1, description="optimizer steps between rows of metrics.jsonl"
    )

    @model_validator(mode="after")
    def _warmup_leaves_steps(self) -> TrainSettings:
        if self.steps is not None and self.warmup_steps(self.steps) >= self.steps > 1:
            raise ValueError(f"warmup {self.warmup} leaves no step of {self.steps}")
        return self

    @override
    def list_unused(self) -> dict[str, str]:
        names = ("final_share",) if self.schedule == "constant" else ()
        return {**super().list_unused(), **dict.fromkeys(names, "set schedule: cosine, or linear")}

    def warmup_steps(self, steps: int) -> int:
        """Return the number of warmup steps."""
        return round(self.warmup * steps)

    def count_steps(self, records: int) -> int:
        """Return the number of optimizer steps for a number of records."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * records / self.batch_size))


def compute_learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """Return the learning rate (``lr_scheduler``) of optimizer step ``step`` (from 0) of ``steps``.

    Warmup is linear and never starts at zero; the first step after it has the peak rate. Cosine and
    linear reach ``final_share`` of the peak at the last step.
    """
    peak = settings.learning_rate
    warmup = settings.warmup_steps(steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return peak
    done = (step - warmup) / max(steps - 1 - warmup, 1)
    if settings.schedule == "cosine":
        done = (1 - math.cos(math.pi * min(done, 1.0))) / 2
    return peak * (1 - (1 - settings.final_share) * min(done, 1.0))
