"""Recipe of a diffusion training job: initialization, objective and corruption."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.diffusion.interfaces import (
    CORRUPTIONS,
    NOISE_SCHEDULES,
    OBJECTIVES,
    Corruption,
    DiffusionObjective,
    NoiseSchedule,
)
from stillroom.recipes import Recipe, Reference, Settings, Size
from stillroom.train.settings import TrainSettings

__all__ = [
    "AnswerTrainingSettings",
    "DiffusionOutputSettings",
    "DiffusionRecipe",
    "NoiseSettings",
    "ScratchSettings",
    "ValidationSettings",
]


class ScratchSettings(Settings):
    """A new network of the Llama architecture with random weights."""

    tokenizer: Reference = Field(
        default="builtin:characters",
        description="checkpoint to copy the tokenizer from; or builtin:characters or "
        "builtin:words, built from the records",
    )
    layers: int = Field(default=4, ge=1, description="transformer layers")
    width: int = Field(default=192, ge=8, description="hidden size")
    heads: int = Field(default=6, ge=1, description="attention heads; a divisor of the width")
    kv_heads: int | None = Field(
        default=None, ge=1, description="key and value heads; null: as many as heads"
    )
    inner: int | None = Field(
        default=None, ge=8, description="width of the feed-forward layer; null: 8/3 of the width"
    )
    tie: bool = Field(default=True, description="tie input and output embeddings")
    context_length: int = Field(default=1024, ge=8, description="context length in tokens")

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchSettings:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError("width must be an even multiple of heads")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError("kv_heads must divide heads")
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
    short_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of texts truncated to a random length; with include_prompt only",
    )

    @model_validator(mode="after")
    def _has_range(self) -> NoiseSettings:
        if self.t_min >= self.t_max:
            raise ValueError("t_min must be below t_max")
        return self


class AnswerTrainingSettings(Settings):
    """Loss on answers, where prompts are given."""

    one_turn: bool = Field(
        default=True,
        description="train on one random answer of a conversation per step, with its context",
    )
    per_answer: bool = Field(
        default=False, description="give every answer the same weight, whatever its length"
    )
    pad_multiple: int = Field(
        default=1,
        ge=1,
        description="append end tokens up to a multiple of this length, and train on them, so "
        "that the model learns to stop",
    )
    pad_cut: bool = Field(
        default=True,
        description="append a random number of these tokens, against an excess of end tokens",
    )


class ValidationSettings(Settings):
    """Metrics on held-out records."""

    records: int = Field(default=32, ge=0, description="maximum number of records; 0 disables")
    every: int = Field(
        default=0, ge=0, description="steps between validations; 0: before and after training only"
    )
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


class DiffusionRecipe(Recipe):
    """Train a masked diffusion language model, from scratch or from a checkpoint."""

    kind: Literal["diffusion"] = Field(default="diffusion", description="train a diffusion model")
    start: ScratchSettings | Reference = Field(
        default_factory=ScratchSettings,
        description="checkpoint to start from (diffusion or autoregressive), or a new network",
    )
    records: Reference = Field(
        description="records artifact or file; those with fields.split 'held_out' are for "
        "validation"
    )
    attention: Literal["full", "block_causal", "causal"] = Field(
        default="full",
        description="full: bidirectional; block_causal: each block attends to itself and those "
        "before; causal: for noising autoregressive only",
    )
    block_size: int | None = Field(
        default=None, ge=1, description="tokens per block; with attention block_causal"
    )
    logit_shift: bool | None = Field(
        default=None,
        description="whether a state predicts the next token; null: as in the initial checkpoint "
        "(autoregressive: yes; new network: no)",
    )
    objective: Annotated[DiffusionObjective, OBJECTIVES.choice("bound")] = Field(
        default_factory=lambda: OBJECTIVES.build("bound"),
        description="training objective: bound (likelihood), vrpo (preference pairs) or "
        "diffu_grpo (rewards of a verifier)",
    )
    noising: Annotated[Corruption, CORRUPTIONS.choice("independent")] = Field(
        default_factory=lambda: CORRUPTIONS.build("independent"),
        description="corruption process of the training texts",
    )
    schedule: Annotated[NoiseSchedule, NOISE_SCHEDULES.choice("linear")] = Field(
        default_factory=lambda: NOISE_SCHEDULES.build("linear"),
        description="masking ratio as a function of time",
    )
    noise: NoiseSettings = Field(default_factory=NoiseSettings, description="distribution of times")
    anneal_steps: int = Field(
        default=0,
        ge=0,
        description="steps over which causal attention becomes full: later positions are visible "
        "with a probability that rises to 1; 0: full from the start",
    )
    block_growth: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="block sizes of the first half of the steps, in equal parts, e.g. [1, 4, 16]",
    )
    include_prompt: bool = Field(
        default=False,
        description="train on all tokens, as in pretraining, not on answers alone",
    )
    answers: AnswerTrainingSettings = Field(
        default_factory=AnswerTrainingSettings, description="loss on answers"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="maximum tokens per record; longer ones are truncated"
    )
    train: TrainSettings = Field(
        default_factory=TrainSettings, description="optimizer, schedule, batch"
    )
    validation: ValidationSettings = Field(
        default_factory=ValidationSettings, description="metrics on held-out records"
    )
    out: DiffusionOutputSettings = Field(
        default_factory=DiffusionOutputSettings, description="storage of the checkpoint"
    )

    @model_validator(mode="after")
    def _attention_fits(self) -> DiffusionRecipe:
        if (self.attention == "block_causal") != (self.block_size is not None):
            raise ValueError("block_size is required for attention block_causal, and for no other")
        if (self.attention == "causal") != self.noising.is_causal:
            raise ValueError(
                "attention causal and noising autoregressive require each other: a diffusion "
                "model predicts masked tokens from both sides"
            )
        if self.anneal_steps and self.attention != "full":
            raise ValueError("anneal_steps requires attention full; set it to 0")
        if self.block_growth and self.attention != "block_causal":
            raise ValueError("block_growth requires attention block_causal; leave it empty")
        if self.noising.is_causal and self.logit_shift is False:
            raise ValueError("an autoregressive model has shifted logits: omit logit_shift")
        if self.objective.needs_model:
            self._check_objective()
        return self

    def _check_objective(self) -> None:
        """Refuse settings of training on plain texts."""
        name = self.objective.method_name()
        if isinstance(self.start, ScratchSettings):
            raise ValueError(f"objective {name} needs a checkpoint: set start to its path")
        if self.attention == "causal":
            raise ValueError(f"objective {name} needs a diffusion model, not attention causal")
        if self.anneal_steps or self.block_growth:
            raise ValueError(f"anneal_steps and block_growth are for objective bound, not {name}")
        if self.train.sharding != "none":
            raise ValueError(
                f"objective {name} needs the whole model in every process: set train.sharding: none"
            )
