"""Metadata of a diffusion checkpoint in its config.json: attention, mask token, shifted logits.

Logits are shifted (``logit_shift``) in ``training.data.collate``, and read so by the KV caches. The
attention mask, the mask token, and whether logits are shifted by one position cannot be inferred
from the weights, and a wrong guess gives text that looks almost right. They are stored under the
key ``stillroom_diffusion``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError
from stillroom.provenance.digests import load_json

__all__ = [
    "BACKEND_NAME",
    "CONFIG_KEY",
    "AttentionKind",
    "DiffusionMetadata",
    "TargetMetadata",
    "find_mask_token",
    "unsupported_config_error",
]

CONFIG_KEY = "stillroom_diffusion"

BACKEND_NAME = "diffusion"

AttentionKind = Literal["full", "block_causal", "causal"]


@dataclass(frozen=True, slots=True)
class TargetMetadata:
    """Metadata that a training job gives its model.

    Args:
        attention: Attention of the trained model.
        block_size: Tokens per block of block-causal attention.
        logit_shift: Whether logits are shifted; None: as in the initial checkpoint.
        schedule: Noise schedule.
    """

    attention: AttentionKind
    block_size: int | None = None
    logit_shift: bool | None = None
    schedule: str = "linear"


class DiffusionMetadata(BaseModel):
    """Attention, special tokens and logit shift of a diffusion checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mask_token_id: int = Field(ge=0, description="mask token")
    attention: AttentionKind = Field(
        default="full",
        description="full: every position attends to all; block_causal: to its own block and "
        "those before; causal: to itself and those before",
    )
    block_size: int | None = Field(
        default=None, ge=1, description="tokens per block, counted from position 0"
    )
    logit_shift: bool = Field(
        default=False,
        description="whether the state at a position predicts the next token, as in "
        "autoregressive models, instead of its own",
    )
    schedule: str = Field(default="linear", description="noise schedule of its training")
    end_token_ids: tuple[int, ...] = Field(
        default=(), description="tokens that end a text; later tokens are ignored"
    )
    pad_token_id: int | None = Field(default=None, ge=0, description="padding token")
    head_bias: bool = Field(
        default=False, description="whether the output embedding has a bias, which stock ones lack"
    )
    layout: str = Field(
        default="stillroom", description="checkpoint format of the original weights"
    )

    @model_validator(mode="after")
    def _check(self) -> DiffusionMetadata:
        if (self.attention == "block_causal") != (self.block_size is not None):
            raise ValueError("block_size is required for attention block_causal, and for no other")
        for name, ids in (("pad_token_id", (self.pad_token_id,)), ("end", self.end_token_ids)):
            if self.mask_token_id in ids:
                raise ValueError(
                    f"the mask token {self.mask_token_id} is also the {name.split('_')[0]} token: "
                    "the mask needs a separate id"
                )
        return self

    def to_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config.json with this metadata and its text-model backend."""
        fields = self.model_dump(mode="json")
        return {**config, CONFIG_KEY: fields, "stillroom_backend": BACKEND_NAME}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> DiffusionMetadata | None:
        """Return the metadata in a config.json, or None without it.

        Raises:
            CheckpointError: If it is invalid, or contradicts the vocabulary.
        """
        stored = config.get(CONFIG_KEY)
        if stored is None:
            return None
        try:
            metadata = cls.model_validate(stored)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            reason = first["msg"].removeprefix("Value error, ")
            raise _invalid_metadata_error(
                f"{field}: {reason}" if field else reason, where
            ) from error
        metadata.check_vocabulary(config, where)
        return metadata

    def check_vocabulary(self, config: Mapping[str, Any], where: str) -> None:
        """Check that the model has an embedding for the mask token.

        Raises:
            CheckpointError: If it has none.
        """
        size = config.get("vocab_size")
        if isinstance(size, int) and self.mask_token_id >= size:
            raise _invalid_metadata_error(
                f"the mask token {self.mask_token_id} is outside the vocabulary of {size} tokens",
                where,
            )


def _invalid_metadata_error(reason: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"invalid diffusion metadata: {reason}",
        code="diffusion.metadata",
        where=where,
        expected=f"'{CONFIG_KEY}' in config.json, as `stillroom diffusion convert` writes it",
        next="correct config.json, or convert the checkpoint again",
    )


def find_mask_token(stored: Checkpoint, texts: tuple[str, ...]) -> int | None:
    """Return the mask token's id, from config.json or from the tokenizer's files.

    Args:
        stored: Checkpoint.
        texts: Possible texts of the token in tokenizer.json.
    """
    token_id = stored.config.get("mask_token_id")
    if isinstance(token_id, int) and not isinstance(token_id, bool):
        return token_id
    path = stored.folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        added = load_json(path.read_text(encoding="utf-8")).get("added_tokens", [])
        ids = {str(token["content"]): int(token["id"]) for token in added}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # an unreadable tokenizer raises its own error later
    return next((ids[text] for text in texts if text in ids), None)


def unsupported_config_error(stored: Checkpoint, reason: str) -> CheckpointError:
    """Return the error for a config that no stock architecture computes."""
    return CheckpointError(
        f"this checkpoint cannot be loaded with stock modules: {reason}",
        code="diffusion.layout",
        where=str(stored.folder / "config.json"),
        expected="a published configuration of its format",
        next="see the formats in `stillroom list methods diffusion.model.formats`",
    )
