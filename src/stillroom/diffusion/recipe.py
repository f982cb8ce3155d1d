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
    """A new network of the Llama architecture, with random weights."""

    tokenizer: Reference = Field(
        default="builtin:characters",
        description="a checkpoint whose tokenizer is taken; or builtin:characters or "
        "builtin:words, made of the records",
    )
    layers: int = Field(default=4, ge=1, description="transformer layers")
    width: int = Field(default=192, ge=8, description="numbers of a state")
    heads: int = Field(default=6, ge=1, description="attention heads; they divide the width")
    kv_heads: int | None = Field(
        default=None, ge=1, description="heads of keys and values; null is as many as heads"
    )
    inner: int | None = Field(
        default=None, ge=8, description="width of the feed-forward layer; null is 8/3 of the width"
    )
    tie: bool = Field(default=True, description="use the input embedding as output embedding")
    context_length: int = Field(default=1024, ge=8, description="positions the model knows")

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchSettings:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError("width must be heads times an even number")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError("kv_heads must divide heads")
        return self


class NoiseSettings(Settings):
    """Which times are drawn."""

    t_min: float = Field(default=1e-3, gt=0, lt=1, description="least time; its weight is 1/t_min")
    t_max: float = Field(default=1.0, gt=0, le=1, description="largest time")
    low_discrepancy: bool = Field(
        default=True, description="spread a step's times evenly over their range"
    )
    short_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of texts cut to a random length, where all that is said is learned",
    )

    @model_validator(mode="after")
    def _has_range(self) -> NoiseSettings:
        if self.t_min >= self.t_max:
            raise ValueError("t_min must be below t_max")
        return self


class AnswerTrainingSettings(Settings):
    """How answers are learned, where prompts are given."""

    one_turn: bool = Field(
        default=True,
        description="of a conversation take one answer, drawn anew each time, with all before it",
    )
    per_answer: bool = Field(
        default=False, description="weigh every answer alike, whatever its length"
    )
    pad_multiple: int = Field(
        default=1,
        ge=1,
        description="end tokens are put behind a text up to a multiple of this, and learned, so "
        "that the model knows when to stop",
    )
    pad_cut: bool = Field(
        default=True,
        description="of those put a random number, so that they do not flood the end of every text",
    )


class ValidationSettings(Settings):
    """What is measured on held-out records."""

    records: int = Field(default=32, ge=0, description="records measured; 0 measures nothing")
    every: int = Field(
        default=0, ge=0, description="steps from one to the next; 0 is before and after alone"
    )
    times: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.15, 0.5, 0.85),
        description="fixed times at which masked tokens are predicted, always with the same masks",
    )
    samples: int = Field(
        default=16, ge=2, description="masks a record for the bound, before and after"
    )


class DiffusionOutputSettings(Settings):
    """How the checkpoint is written."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="storage type of the weights"
    )
    shard_size: Size = Field(
        default=5_000_000_000, gt=0, description="most bytes of one weights file"
    )


class DiffusionRecipe(Recipe):
    """Train a masked diffusion language model, from nothing or from a checkpoint."""

    kind: Literal["diffusion"] = Field(default="diffusion", description="train a diffusion model")
    start: ScratchSettings | Reference = Field(
        default_factory=ScratchSettings,
        description="a checkpoint to go on from (diffusion or autoregressive), or a new network",
    )
    records: Reference = Field(
        description="a records artifact or file; those with fields.split 'held_out' only validate"
    )
    attention: Literal["full", "block_causal", "causal"] = Field(
        default="full",
        description="full: all see all; block_causal: blocks see themselves and those before; "
        "causal: for noising autoregressive alone",
    )
    block_size: int | None = Field(
        default=None, ge=1, description="tokens of a block, where attention is block_causal"
    )
    logit_shift: bool | None = Field(
        default=None,
        description="whether a state predicts the next token; null keeps what the start does: an "
        "autoregressive one's do, a new network's do not",
    )
    objective: Annotated[DiffusionObjective, OBJECTIVES.choice("bound")] = Field(
        default_factory=lambda: OBJECTIVES.build("bound"),
        description="what it is trained towards: bound says what is said, vrpo prefers chosen "
        "answers to rejected ones, diffu_grpo is rewarded by a verifier",
    )
    noising: Annotated[Corruption, CORRUPTIONS.choice("independent")] = Field(
        default_factory=lambda: CORRUPTIONS.build("independent"),
        description="the noisy copies that a text is learned from",
    )
    schedule: Annotated[NoiseSchedule, NOISE_SCHEDULES.choice("linear")] = Field(
        default_factory=lambda: NOISE_SCHEDULES.build("linear"),
        description="how much is masked at which time",
    )
    noise: NoiseSettings = Field(default_factory=NoiseSettings, description="which times are drawn")
    anneal_steps: int = Field(
        default=0,
        ge=0,
        description="steps over which causal attention becomes full, later places being seen with "
        "a chance that rises to 1; 0 is full from the start",
    )
    block_growth: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        description="block sizes of the first half of the steps, in equal parts, as [1, 4, 16]",
    )
    include_prompt: bool = Field(
        default=False,
        description="learn all that is said, as in pretraining, not the answers alone",
    )
    answers: AnswerTrainingSettings = Field(
        default_factory=AnswerTrainingSettings, description="how answers are learned"
    )
    max_tokens: int = Field(
        default=512, ge=2, description="tokens of a record; what is longer is cut and counted"
    )
    train: TrainSettings = Field(
        default_factory=TrainSettings, description="optimizer, schedule, batch"
    )
    validation: ValidationSettings = Field(
        default_factory=ValidationSettings, description="what is measured on held-out records"
    )
    out: DiffusionOutputSettings = Field(
        default_factory=DiffusionOutputSettings, description="how the checkpoint is written"
    )

    @model_validator(mode="after")
    def _attention_fits(self) -> DiffusionRecipe:
        if (self.attention == "block_causal") != (self.block_size is not None):
            raise ValueError("block_size belongs to attention block_causal, and to no other")
        if (self.attention == "causal") != self.noising.is_causal:
            raise ValueError(
                "attention causal and noising autoregressive belong together: a masked token that "
                "sees nothing behind it is not what a diffusion model learns"
            )
        if self.anneal_steps and self.attention != "full":
            raise ValueError("anneal_steps leads to attention full; leave it at 0")
        if self.block_growth and self.attention != "block_causal":
            raise ValueError("block_growth leads to a block_size; leave it empty")
        if self.noising.is_causal and self.logit_shift is False:
            raise ValueError("an autoregressive model's logits are shifted: leave logit_shift out")
        if self.objective.needs_model:
            self._check_objective()
        return self

    def _check_objective(self) -> None:
        """Refuse what belongs to learning from texts alone."""
        name = self.objective.method_name()
        if isinstance(self.start, ScratchSettings):
            raise ValueError(f"objective {name} goes on from a model: set start to its checkpoint")
        if self.attention == "causal":
            raise ValueError(f"objective {name} is for a diffusion model, not for attention causal")
        if self.anneal_steps or self.block_growth:
            raise ValueError(f"anneal_steps and block_growth belong to objective bound, not {name}")
        if self.train.sharding != "none":
            raise ValueError(
                f"objective {name} reads a whole model in every process: set train.sharding: none"
            )
