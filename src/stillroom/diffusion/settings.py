"""Settings that the kinds of diffusion training share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.diffusion.interfaces import STAGES, TrainingStage
from stillroom.recipes import Recipe, Reference, Settings, Size
from stillroom.train.replay import TRAINING, TrainingReplayer
from stillroom.train.settings import LoraSettings, TrainSettings

__all__ = [
    "REPLAYER",
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
    """End tokens after a text, which are trained on, so that the model learns to stop."""

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

    times: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.15, 0.5, 0.85),
        description="fixed times of the masked cross-entropy; masks never change",
    )
    samples: int = Field(
        default=16, ge=2, description="masks per record for the bound, before and after training"
    )


class DiffusionOutputSettings(Settings):
    """Storage of the checkpoint."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="dtype of the stored weights"
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
    """Settings of a training run that needs the whole model in every process, to sample from it."""

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


REPLAYER = TrainingReplayer(journals=(TRAINING, "rollouts"), lighten=_lighten)
"""Replay of every kind that trains a diffusion model, or its autoregressive baseline."""
