"""What makes a checkpoint a diffusion model, saved in its config.json and read by everything.

Which positions see which, which token is the mask, and whether a position's logits predict itself
or the next one: none of it can be told from the weights, and a wrong guess gives text that looks
almost right. So it is written down once, under the key ``stillroom_diffusion``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stillroom.errors import CheckpointError

__all__ = ["BACKEND", "CONFIG_KEY", "AttentionKind", "DiffusionMetadata"]

CONFIG_KEY = "stillroom_diffusion"
BACKEND = "diffusion"

AttentionKind = Literal["full", "block_causal", "causal"]


class DiffusionMetadata(BaseModel):
    """How a checkpoint's positions see each other, and which tokens mean what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_token_id: int = Field(ge=0, description="the token that stands for an unknown one")
    attention: AttentionKind = Field(
        default="full",
        description="full: every position sees every other; block_causal: those of its own block "
        "and before; causal: those before",
    )
    block_size: int | None = Field(
        default=None, ge=1, description="tokens of a block, counted from position 0"
    )
    logit_shift: bool = Field(
        default=False,
        description="whether the state at a position predicts the next position's token, as an "
        "autoregressive model's does, or its own",
    )
    schedule: str = Field(default="linear", description="the noise schedule it was trained with")
    end_token_ids: tuple[int, ...] = Field(
        default=(), description="tokens that end a text; what stands after them says nothing"
    )
    pad_token_id: int | None = Field(default=None, ge=0, description="the padding token")
    head_bias: bool = Field(
        default=False, description="whether the output embedding has a bias that stock ones lack"
    )
    layout: str = Field(default="stillroom", description="the format its weights were read from")

    @model_validator(mode="after")
    def _check(self) -> DiffusionMetadata:
        if (self.attention == "block_causal") != (self.block_size is not None):
            raise ValueError("block_size belongs to attention block_causal, and to no other")
        for name, ids in (("pad_token_id", (self.pad_token_id,)), ("end", self.end_token_ids)):
            if self.mask_token_id in ids:
                raise ValueError(
                    f"the mask token {self.mask_token_id} is also the {name.split('_')[0]} token: "
                    "the mask needs an id of its own"
                )
        return self

    def to_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config.json with this metadata in it, and the backend that serves it."""
        said = self.model_dump(mode="json")
        return {**config, CONFIG_KEY: said, "stillroom_backend": BACKEND}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> DiffusionMetadata | None:
        """Return what a config.json says, or None where it says nothing.

        Raises:
            CheckpointError: If what it says contradicts itself or the model's vocabulary.
        """
        said = config.get(CONFIG_KEY)
        if said is None:
            return None
        try:
            found = cls.model_validate(said)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise _unusable(f"{place}: {said}" if place else said, where) from error
        found.check_vocabulary(config, where)
        return found

    def check_vocabulary(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse a mask token that the model has no embedding for.

        Raises:
            CheckpointError: If it has none.
        """
        size = config.get("vocab_size")
        if isinstance(size, int) and self.mask_token_id >= size:
            raise _unusable(
                f"the mask token {self.mask_token_id} is not among the model's {size} tokens", where
            )


def _unusable(what: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"the diffusion settings cannot be used: {what}",
        code="diffusion.metadata",
        where=where,
        expected=f"config.json with '{CONFIG_KEY}' as `stillroom diffusion convert` writes it",
        next="correct config.json, or convert the checkpoint again",
    )
