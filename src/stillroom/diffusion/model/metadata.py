"""Metadata of a diffusion checkpoint, stored in its config.json.

Which positions see which, which token is the mask, and whether a position's logits predict itself
or the next one: none of it can be told from the weights, and a wrong guess gives text that looks
almost right. So it is written down once, under the key ``stillroom_diffusion``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stillroom.diffusion.interfaces import StoredCheckpoint
from stillroom.errors import CheckpointError

__all__ = [
    "BACKEND_NAME",
    "CONFIG_KEY",
    "AttentionKind",
    "DiffusionMetadata",
    "find_special_token",
    "unsupported_config_error",
]


CONFIG_KEY = "stillroom_diffusion"


BACKEND_NAME = "diffusion"


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
        return {**config, CONFIG_KEY: said, "stillroom_backend": BACKEND_NAME}

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
            raise _invalid_metadata_error(f"{place}: {said}" if place else said, where) from error
        found.check_vocabulary(config, where)
        return found

    def check_vocabulary(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse a mask token that the model has no embedding for.

        Raises:
            CheckpointError: If it has none.
        """
        size = config.get("vocab_size")
        if isinstance(size, int) and self.mask_token_id >= size:
            raise _invalid_metadata_error(
                f"the mask token {self.mask_token_id} is not among the model's {size} tokens", where
            )


def _invalid_metadata_error(what: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"the diffusion settings cannot be used: {what}",
        code="diffusion.metadata",
        where=where,
        expected=f"config.json with '{CONFIG_KEY}' as `stillroom diffusion convert` writes it",
        next="correct config.json, or convert the checkpoint again",
    )


def find_special_token(stored: StoredCheckpoint, name: str, texts: tuple[str, ...]) -> int | None:
    """Return a special token's id: from config.json, else from the tokenizer's files by its text.

    Args:
        stored: The checkpoint.
        name: The key of config.json, as ``mask_token_id``.
        texts: How the token may be written in tokenizer.json.
    """
    said = stored.config.get(name)
    if isinstance(said, int) and not isinstance(said, bool):
        return said
    path = stored.folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
        found = {str(token["content"]): int(token["id"]) for token in added}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # a tokenizer that cannot be read is the tokenizer's own error, later
    return next((found[text] for text in texts if text in found), None)


def unsupported_config_error(stored: StoredCheckpoint, what: str) -> CheckpointError:
    """Return the error for a config that no stock architecture computes."""
    return CheckpointError(
        f"this checkpoint cannot be read with stock modules: {what}",
        code="diffusion.layout",
        where=str(stored.folder / "config.json"),
        expected="a published configuration of its format",
        next="stillroom list methods diffusion.model.formats shows what is read",
    )
