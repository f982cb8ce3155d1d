"""PruneSettings: how a student is made of the teacher's own weights. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillroom.recipes import Settings

__all__ = ["LayerChoice", "PruneSettings"]

LayerChoice = Literal["influence", "even", "loss", "kl", "contiguous"]


class PruneSettings(Settings):
    """Make the student from the teacher's own layers, heads and channels."""

    max_parameters: float = Field(
        default=0.6, gt=0, le=1, description="most parameters, as a share of the teacher's"
    )
    prune: Literal["depth", "inner", "width", "both"] = Field(
        default="depth",
        description="what shrinks to fit max_parameters, of the sizes that are not given: depth: "
        "layers; inner: layers and intermediate_size; width: hidden_size and intermediate_size; "
        "both: all three",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        description="how many layers to keep; null as many as max_parameters allows",
    )
    hidden_size: int | None = Field(
        default=None, ge=1, description="channels between layers; null the teacher's, or what fits"
    )
    intermediate_size: int | None = Field(
        default=None, ge=1, description="feed-forward channels; null the teacher's, or what fits"
    )
    attention_heads: int | None = Field(
        default=None, ge=1, description="query heads of a layer; null the teacher's"
    )
    kv_heads: int | None = Field(
        default=None, ge=1, description="key-value heads of a layer; null the teacher's"
    )
    keep: tuple[int, ...] | None = Field(
        default=None, description="exactly these layers, counted from 0; null chooses"
    )
    choose: LayerChoice = Field(
        default="influence",
        description="influence: the layers that turn their input most; loss, kl: those whose "
        "absence costs most, in loss or in KL to the teacher; contiguous: all but the run whose "
        "absence turns the state least; even: evenly spaced; all keep the first and the last",
    )
    iterative: bool = Field(
        default=False,
        description="with loss or kl: measure again after each layer dropped (slow, often better)",
    )
    rescale_norms: bool = Field(
        default=True,
        description="where hidden_size shrinks: scale each norm so that what is kept leaves it as "
        "large as before",
    )
    calibration_records: int = Field(
        default=16, ge=1, description="training records that layers and channels are measured on"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> PruneSettings:
        if self.keep is not None:
            if self.layers is not None:
                raise ValueError("give either 'layers' or 'keep'")
            if list(self.keep) != sorted(set(self.keep)) or not self.keep or self.keep[0] < 0:
                raise ValueError("'keep' wants layer numbers from 0, rising, each once")
        if self.iterative and self.choose not in {"loss", "kl"}:
            raise ValueError("'iterative' goes with choose 'loss' or 'kl'")
        return self

    @property
    def is_narrower(self) -> bool:
        """Whether the width may shrink, so that it has to be understood."""
        sizes = (self.hidden_size, self.intermediate_size, self.attention_heads, self.kv_heads)
        return self.prune != "depth" or any(size is not None for size in sizes)

    def count_passes(self, layers: int) -> int:
        """Return about how often the teacher reads the calibration records.

        Args:
            layers: The teacher's.
        """
        width = 0 if not self.is_narrower else 2 if self.rescale_norms else 1
        if self.keep is not None or self.choose == "even":
            return width
        if self.choose not in {"loss", "kl"}:
            return width + 1
        if not self.iterative:
            return width + layers
        kept = min(self.layers or round(layers * self.max_parameters), layers)
        return width + sum(range(kept + 1, layers + 1))
