"""DecodeSettings: how a text is written, as a recipe or command says it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from stillroom.diffusion.caching import CACHES, CacheMethod
from stillroom.diffusion.steps import (
    COMMITS,
    LENGTHS,
    ORDERS,
    REMASKINGS,
    CommitRule,
    Length,
    Order,
    Remasking,
)
from stillroom.errors import RecipeError
from stillroom.recipes import Settings

if TYPE_CHECKING:
    from stillroom.diffusion.metadata import DiffusionMetadata

__all__ = ["DecodeSettings", "EndSettings"]


class EndSettings(Settings):
    """What is done about tokens that end the text."""

    stop_early: bool = Field(
        default=True, description="end as soon as an end token has nothing open before it"
    )
    last: bool = Field(
        default=False, description="write end tokens only where nothing else could be written"
    )
    never: bool = Field(default=False, description="never write an end token")
    penalty: float = Field(
        default=0.0, ge=0, description="nats taken off every end token, against floods of them"
    )


class DecodeSettings(Settings):
    """Order, commit rule, remasking, blocks, guidance, sampling, ends, length and cache."""

    max_new_tokens: int = Field(default=128, ge=0, description="places behind the prompt")
    block_length: int | None = Field(
        default=None,
        ge=1,
        description="places written before the next ones are begun; null is the attention's own "
        "blocks, else all at once; the last block may be shorter",
    )
    order: Annotated[Order, ORDERS.choice("confidence")] = Field(
        default_factory=lambda: ORDERS.build("confidence"),
        description="which open place is written first",
    )
    commit: Annotated[CommitRule, COMMITS.choice("threshold")] = Field(
        default_factory=lambda: COMMITS.build("threshold"),
        description="how many places are written in one step",
    )
    remasking: Annotated[Remasking, REMASKINGS.choice()] | None = Field(
        default=None, description="what happens to written tokens; null keeps them"
    )
    length: Annotated[Length, LENGTHS.choice("fixed")] = Field(
        default_factory=lambda: LENGTHS.build("fixed"), description="how many places there are"
    )
    cache: Annotated[CacheMethod, CACHES.choice()] | None = Field(
        default=None,
        description="what of earlier calls is used again; null is what changes nothing: finished "
        "blocks where attention is by blocks, else nothing",
    )
    temperature: float = Field(
        default=0.0, ge=0, description="0 takes the likeliest token; above it tokens are drawn"
    )
    top_k: int = Field(default=0, ge=0, description="draw among so many tokens; 0 is all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw among the tokens that make up this share"
    )
    cfg_scale: float = Field(
        default=0.0,
        ge=0,
        description="guidance: how far logits move from those without the given text; 0 is none",
    )
    end: EndSettings = Field(
        default_factory=EndSettings, description="what is done about tokens that end the text"
    )
    seed: int = Field(
        default=0, ge=0, description="of a text's draws, where it has none of its own"
    )
    rows: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="texts read in one call; 1 gives the same bits beside any others",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> DecodeSettings:
        if self.remasking is not None and self.remasking.needs_plan and not self.commit.has_plan:
            raise ValueError(
                f"remasking '{self.remasking.method_name()}' needs to know how many steps there "
                f"are, and commit '{self.commit.method_name()}' does not: use quota or top_k"
            )
        if (
            self.length.needs_whole
            and self.cache is not None
            and self.cache.method_name() != "whole"
        ):
            raise ValueError(
                f"length '{self.length.method_name()}' puts places between others, so that nothing "
                "can be cached: use cache whole"
            )
        return self

    def check_against(self, metadata: DiffusionMetadata) -> None:
        """Refuse what a model cannot do.

        Raises:
            RecipeError: Naming the setting.
        """
        attention, block = metadata.attention, metadata.block_size
        if self.cache is not None and attention not in self.cache.attentions:
            raise _misfit(
                f"cache '{self.cache.method_name()}' needs attention by blocks, and this model's "
                f"is {attention}",
                "prefix, dual or delayed (approximate), or whole",
            )
        if block is not None and self.block_length not in (None, block):
            raise _misfit(
                f"block_length {self.block_length} is not the {block} of the model's attention",
                f"block_length {block}, or null",
            )
        if self.length.needs_whole and attention != "full":
            raise _misfit(
                f"length '{self.length.method_name()}' needs a model that sees the whole text",
                "length fixed",
            )
        needs = self.remasking.needs if self.remasking is not None else "nothing"
        if needs == "shadows" and metadata.logit_shift:
            raise _misfit(
                "remasking 'wino' needs logits at the masks themselves, and this model's are "
                "shifted by one",
                "remasking remdm, or none",
            )

    def cache_for(self, metadata: DiffusionMetadata) -> CacheMethod:
        """Return the cache that is used with a model."""
        if self.cache is not None:
            return self.cache
        is_by_blocks = metadata.attention == "block_causal" and not self.length.needs_whole
        return CACHES.build("block" if is_by_blocks else "whole")


def _misfit(what: str, expected: str) -> RecipeError:
    return RecipeError(
        what,
        code="diffusion.decode",
        expected=expected,
        next="change the setting, or leave it to its default",
    )
