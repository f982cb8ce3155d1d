"""Settings that the kinds of diffusion training share: noise, EOS padding, validation, output."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from stillroom.diffusion.interfaces import STAGES, TrainingStage
from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind, defer
from stillroom.objects import resolve_local
from stillroom.recipes import DISTINCT, Recipe, Reference, Settings, Size
from stillroom.train.replay import TRAINING, TrainingReplayer
from stillroom.train.settings import LoraSettings, TrainSettings

__all__ = [
    "DiffusionOutputSettings",
    "DiffusionRecipe",
    "DiffusionTrainSettings",
    "EndPaddingSettings",
    "MaskedValidationSettings",
    "MergedLoraSettings",
    "NewNetworkSettings",
    "NoiseSettings",
    "PolicyRecipe",
    "ReplicatedTrainSettings",
    "TextTrainingRecipe",
    "ValidationSettings",
    "declare_training",
    "estimate_decoding",
    "estimate_training",
]


class NewNetworkSettings(Settings):
    """A new network of the Llama architecture with random weights."""

    tokenizer: Reference = Field(
        default="builtin:characters",
        description="checkpoint to copy the tokenizer from; or builtin:characters or "
        "builtin:words, built from the records",
    )
    num_hidden_layers: int = Field(default=4, ge=1, description="transformer layers")
    hidden_size: int = Field(default=192, ge=8, description="width of the hidden states")
    num_attention_heads: int = Field(
        default=6, ge=1, description="attention heads; a divisor of hidden_size"
    )
    num_key_value_heads: int | None = Field(
        default=None, ge=1, description="key and value heads; null: as many as attention heads"
    )
    intermediate_size: int | None = Field(
        default=None, ge=8, description="width of the feed-forward layer; null: 8/3 of hidden_size"
    )
    tie_word_embeddings: bool = Field(default=True, description="tie input and output embeddings")
    context_length: int = Field(default=1024, ge=8, description="context length in tokens")

    @model_validator(mode="after")
    def _heads_divide(self) -> NewNetworkSettings:
        heads = self.num_attention_heads
        if self.hidden_size % heads or (self.hidden_size // heads) % 2:
            raise ValueError("hidden_size must be an even multiple of num_attention_heads")
        if heads % (self.num_key_value_heads or heads):
            raise ValueError("num_key_value_heads must divide num_attention_heads")
        return self


class NoiseSettings(Settings):
    """Distribution of the noise time t."""

    t_min: float = Field(
        default=1e-3, gt=0, lt=1, description="minimum time; its weight is 1/t_min"
    )
    t_max: float = Field(default=1.0, gt=0, le=1, description="maximum time")
    low_discrepancy: bool = Field(
        default=True, description="spread the times of a step evenly over their range"
    )

    @model_validator(mode="after")
    def _has_range(self) -> NoiseSettings:
        if self.t_min >= self.t_max:
            raise ValueError("t_min must be below t_max")
        return self


class EndPaddingSettings(Settings):
    """EOS padding: end tokens after a text, which are trained on, so that the model learns to stop.

    Applied by ``training.masked.TextDataSource``. LLaDA (arXiv:2502.09992) pads the texts of a
    batch to one length so; here the length depends on the text alone.
    """

    multiple: int = Field(ge=2, description="append end tokens up to a multiple of this length")
    random_length: bool = Field(
        default=True,
        description="append a random number of these tokens, against an excess of end tokens",
    )


class ValidationSettings(Settings):
    """Metrics on held-out records."""

    records: int = Field(default=32, ge=0, description="maximum number of records; 0 disables")
    every: int = Field(
        default=0, ge=0, description="steps between validations; 0: before and after training only"
    )


class MaskedValidationSettings(ValidationSettings):
    """Metrics of a diffusion model on held-out records."""

    times: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], DISTINCT] = Field(
        default=(0.15, 0.5, 0.85),
        description="fixed times of the masked cross-entropy; masks never change",
    )
    samples: int = Field(
        default=16, ge=2, description="masks per record for the bound, before and after training"
    )


class DiffusionOutputSettings(Settings):
    """Storage of the checkpoint."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="dtype of the stored weights; auto: float16 after train.lora, whose updates "
        "bfloat16 would round off, else bfloat16",
    )
    shard_size: Size = Field(
        default=5_000_000_000, gt=0, description="maximum bytes per weights file"
    )


class MergedLoraSettings(LoraSettings):
    """LoRA whose updates are merged into the weights at the end."""

    keep_adapter: ClassVar[bool] = False  # type: ignore[misc]


class DiffusionTrainSettings(TrainSettings):
    """Optimizer, schedule, batch size, precision and logging of a training run."""

    lora: MergedLoraSettings | None = Field(
        default=None, description="train low-rank updates only; null trains all weights"
    )


class ReplicatedTrainSettings(DiffusionTrainSettings):
    """Settings of a policy: every process has the whole model; it moves little from its start."""

    learning_rate: float = Field(
        default=1e-5,
        gt=0,
        description="peak learning rate; a policy far from its reference unlearns its answers",
    )
    sharding: ClassVar[Literal["none"]] = "none"  # type: ignore[misc]


class DiffusionRecipe(Recipe):
    """Settings of every job that trains a checkpoint on records."""

    model: NewNetworkSettings | Reference = Field(
        default_factory=NewNetworkSettings,
        description="checkpoint to start from (diffusion or autoregressive), or a new network",
    )
    records: Reference = Field(
        description="records artifact or file; those with fields.split 'held_out' are for "
        "validation"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="maximum tokens per record; longer ones are truncated"
    )
    train: DiffusionTrainSettings = Field(
        default_factory=DiffusionTrainSettings, description="optimizer, schedule, batch"
    )
    validation: ValidationSettings = Field(
        default_factory=ValidationSettings, description="metrics on held-out records"
    )
    out: DiffusionOutputSettings = Field(
        default_factory=DiffusionOutputSettings, description="storage of the checkpoint"
    )


class TextTrainingRecipe(DiffusionRecipe):
    """Settings of every job that trains on texts."""

    stage: Annotated[TrainingStage, STAGES.choice("sft")] = Field(
        default_factory=lambda: STAGES.build("sft"),
        description="training stage: sft learns answers, pretraining all tokens",
    )
    loss_normalization: Literal["token", "sequence"] = Field(
        default="token",
        description="mean of the loss: over tokens, or over texts, whatever their length",
    )
    padding: EndPaddingSettings | None = Field(
        default=None,
        description="end tokens after a text, which are learned, as {multiple: 16, random_length: "
        "true}; null for none",
    )


class PolicyRecipe(DiffusionRecipe):
    """Settings of every job that trains a policy away from its initial model, the reference."""

    model: Reference = Field(
        description="diffusion checkpoint trained on answers; also the reference"
    )
    train: ReplicatedTrainSettings = Field(
        default_factory=ReplicatedTrainSettings, description="optimizer, schedule, batch"
    )
    validation: MaskedValidationSettings = Field(
        default_factory=MaskedValidationSettings, description="metrics on held-out records"
    )


def _lighten(recipe: DiffusionRecipe, is_whole: bool) -> DiffusionRecipe:
    """Return a recipe that measures nothing, for a replay of some steps."""
    if is_whole:
        return recipe
    validation = recipe.validation.model_copy(update={"records": 0})
    return recipe.model_copy(update={"validation": validation})


R = TypeVar("R", bound="DiffusionRecipe")

_FLOPS_PER_CORE = 2.5e10  # training in float32, measured on two cores
_OVERHEAD = 500_000_000
_DEFAULT_PARAMETERS = 135_000_000
_DEFAULT_GRID = {"threshold": 4, "block_length": 3, "cache": 4, "order": 2}
_FORWARD_PASSES = 32  # of one answer, and tokens in each, where nothing is known of the records


def estimate_training(
    recipe: DiffusionRecipe,
    *,
    passes: float = 1,
    steps_per_batch: int = 1,
    has_reference: bool = False,
) -> Estimate:
    """Estimate memory, disk and time of the job; a missing checkpoint counts as 135M.

    Args:
        recipe: Recipe of the job.
        passes: Training passes per record and step; a forward pass alone is a third.
        steps_per_batch: Optimizer steps per batch of records.
        has_reference: Whether a copy of the initial model is kept in memory.
    """
    from stillroom.train.data import split_records

    parameters, vocabulary, basis = _count_parameters(recipe.model)
    path = resolve_local(recipe.records)
    records = len(split_records(path).train) if path.exists() else 0
    steps = (
        recipe.train.count_steps(records * steps_per_batch) if records else recipe.train.steps or 0
    )
    tokens = recipe.train.batch_size * recipe.max_tokens / 2 * steps
    speed = _FLOPS_PER_CORE * (recipe.train.threads or os.cpu_count() or 1)
    width = 4 if recipe.out.dtype == "float32" else 2
    return Estimate(
        memory_bytes=(16 + 4 * has_reference) * parameters + 8 * vocabulary * 1024 + _OVERHEAD,
        disk_bytes=parameters * (width + 4 + 12),
        seconds=6 * parameters * tokens * passes / speed + 10,
        memory_knob="lower train.micro_tokens, or set train.lora",
        disk_knob="use out.dtype: bfloat16",
        basis=f"{basis}; {records} records, {steps} steps of {recipe.train.batch_size} texts of "
        f"about {recipe.max_tokens // 2} tokens",
    )


def declare_training(
    recipe_class: type[R], objective: str, estimate: Callable[[R], Estimate] = estimate_training
) -> JobKind[R]:
    """Declare a kind of job that trains a diffusion model, or its autoregressive baseline.

    Args:
        recipe_class: Recipe of the kind.
        objective: ``module:Class`` in ``stillroom.diffusion.training``; it is built from the
            recipe, and trained by ``stillroom.diffusion.trainer.train_checkpoint``.
        estimate: Estimate of the job.
    """
    build = defer(f"stillroom.diffusion.training.{objective}")
    train = defer("stillroom.diffusion.trainer:train_checkpoint")
    return JobKind(
        recipe_class,
        lambda recipe, job: train(build(recipe), job),
        estimate,
        defer("stillroom.diffusion.trainer:preflight_training"),
        is_distributed=True,
        extras=("models",),
        replayer=TrainingReplayer(journals=(TRAINING, "rollouts"), lighten=_lighten),
    )


def estimate_decoding(model: str, grid: Mapping[str, Sequence[object]], records: int) -> Estimate:
    """Estimate memory, disk and time of a decoding sweep; a missing checkpoint counts as 135M."""
    parameters, vocabulary, basis = _count_parameters(model)
    sizes = {**_DEFAULT_GRID, **{key.rpartition(".")[2]: len(row) for key, row in grid.items()}}
    settings = math.prod(sizes.values()) + 1
    tokens = settings * records * _FORWARD_PASSES**2
    return Estimate(
        memory_bytes=4 * parameters + 8 * vocabulary * 1024 + _OVERHEAD,
        disk_bytes=1000 * settings * records,
        seconds=2 * parameters * tokens / (_FLOPS_PER_CORE * (os.cpu_count() or 1)) + 10,
        memory_knob="use a smaller checkpoint",
        disk_knob="lower max_records, or the values in grid",
        basis=f"{basis}; {settings} settings on at most {records} records",
    )


def _count_parameters(model: NewNetworkSettings | str) -> tuple[int, int, str]:
    """Return parameters, vocabulary size and the basis of the estimate."""
    from stillroom.checkpoints import Checkpoint

    if isinstance(model, NewNetworkSettings):
        width = model.hidden_size
        inner = model.intermediate_size or width * 8 // 3
        layer = 4 * width**2 + 3 * width * inner
        vocabulary = 1000 if model.tokenizer.startswith("builtin:") else 50_000
        return model.num_hidden_layers * layer + vocabulary * width, vocabulary, "a new network"
    folder = Path(model)
    if not model.startswith("hub:") and folder.exists() and folder.suffix != ".gguf":
        stored = Checkpoint.open(folder)
        return stored.parameters, int(stored.config.get("vocab_size", 50_000)), folder.name
    return _DEFAULT_PARAMETERS, 50_000, f"{model}, taken as 135M"
