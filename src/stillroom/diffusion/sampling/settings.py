"""Decoding settings and named presets; imports no torch.

``stillroom diffusion tune`` writes one; ``sample --preset`` and the backend's setting ``preset``
read it. What is read is the file, or the folder that tune left. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from stillroom.diffusion.interfaces import (
    LENGTH_POLICIES,
    REMASKINGS,
    UNMASK_ORDERS,
    UNMASK_RULES,
    LengthPolicy,
    Remasking,
    UnmaskOrder,
    UnmaskRule,
)
from stillroom.diffusion.sampling.kv_cache import KV_CACHES, KVCacheMethod
from stillroom.errors import RecipeError
from stillroom.jobs import atomic_write
from stillroom.recipes import Settings
from stillroom.recipes.loader import parse_group
from stillroom.recipes.yaml_text import emit_yaml

if TYPE_CHECKING:
    from stillroom.diffusion.model.metadata import DiffusionMetadata

__all__ = [
    "PRESET_FILE",
    "DecodeSettings",
    "DecodingPreset",
    "EndSettings",
    "find_preset",
    "read_preset",
    "write_preset",
]


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
    order: Annotated[UnmaskOrder, UNMASK_ORDERS.choice("confidence")] = Field(
        default_factory=lambda: UNMASK_ORDERS.build("confidence"),
        description="which open place is written first",
    )
    commit: Annotated[UnmaskRule, UNMASK_RULES.choice("threshold")] = Field(
        default_factory=lambda: UNMASK_RULES.build("threshold"),
        description="how many places are written in one step",
    )
    remasking: Annotated[Remasking, REMASKINGS.choice()] | None = Field(
        default=None, description="what happens to written tokens; null keeps them"
    )
    length: Annotated[LengthPolicy, LENGTH_POLICIES.choice("fixed")] = Field(
        default_factory=lambda: LENGTH_POLICIES.build("fixed"),
        description="how many places there are",
    )
    cache: Annotated[KVCacheMethod, KV_CACHES.choice()] | None = Field(
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
            raise _mismatch_error(
                f"cache '{self.cache.method_name()}' needs attention by blocks, and this model's "
                f"is {attention}",
                "prefix, dual or delayed (approximate), or whole",
            )
        if block is not None and self.block_length not in (None, block):
            raise _mismatch_error(
                f"block_length {self.block_length} is not the {block} of the model's attention",
                f"block_length {block}, or null",
            )
        if self.length.needs_whole and attention != "full":
            raise _mismatch_error(
                f"length '{self.length.method_name()}' needs a model that sees the whole text",
                "length fixed",
            )
        needs = self.remasking.needs if self.remasking is not None else "nothing"
        if needs == "shadows" and metadata.logit_shift:
            raise _mismatch_error(
                "remasking 'wino' needs logits at the masks themselves, and this model's are "
                "shifted by one",
                "remasking remdm, or none",
            )

    def cache_for(self, metadata: DiffusionMetadata) -> KVCacheMethod:
        """Return the cache that is used with a model."""
        if self.cache is not None:
            return self.cache
        is_by_blocks = metadata.attention == "block_causal" and not self.length.needs_whole
        return KV_CACHES.build("block" if is_by_blocks else "whole")


def _mismatch_error(what: str, expected: str) -> RecipeError:
    return RecipeError(
        what,
        code="diffusion.decode",
        expected=expected,
        next="change the setting, or leave it to its default",
    )


PRESET_FILE = "preset.yaml"


class DecodingPreset(Settings):
    """Decoding settings under a name."""

    name: str = Field(description="for people; part of what a run records")
    checkpoint: str = Field(
        default="", description="fingerprint of the weights it was measured on; empty fits any"
    )
    settings: DecodeSettings = Field(
        default_factory=DecodeSettings, description="as `stillroom diffusion sample --set` has them"
    )
    measured: dict[str, float | int | str] = Field(
        default_factory=dict, description="what it came to where it was chosen"
    )

    def check_against(self, fingerprint: str) -> None:
        """Refuse weights that the preset was not measured on.

        Raises:
            RecipeError: If it names other weights.
        """
        if self.checkpoint and self.checkpoint != fingerprint:
            raise RecipeError(
                f"preset '{self.name}' was measured on other weights "
                f"({self.checkpoint[:12]}, not {fingerprint[:12]})",
                code="diffusion.preset",
                expected="the checkpoint it was measured on",
                next="tune this checkpoint, or take the line 'checkpoint' out of the preset to use "
                "it unmeasured",
            )


def read_preset(path: Path) -> DecodingPreset:
    """Read a preset from its file, or from the folder that tune left.

    Raises:
        RecipeError: If there is none, or with every problem in it.
    """
    places = (path, path / PRESET_FILE, path / "output" / PRESET_FILE)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RecipeError(
            f"there is no preset at {path}",
            code="diffusion.preset",
            expected="a preset's file, or the folder that tune left",
            next="stillroom diffusion tune CHECKPOINT --records R --out FOLDER",
        )
    return parse_group(DecodingPreset, found.read_text(encoding="utf-8"), str(found))


def find_preset(checkpoint: Path) -> Path | None:
    """Return the preset that ``tune --write`` left at a checkpoint, or None.

    It lies in the checkpoint's folder; of a run, beside its artifact.json and not among its output.
    """
    places = [checkpoint / PRESET_FILE]
    if checkpoint.name == "output" and (checkpoint.parent / "artifact.json").is_file():
        places.append(checkpoint.parent / PRESET_FILE)
    return next((place for place in places if place.is_file()), None)


def write_preset(path: Path, preset: DecodingPreset) -> None:
    """Write a preset as YAML."""
    with atomic_write(path) as file:
        file.write("# stillroom diffusion sample CHECKPOINT --preset " + PRESET_FILE + "\n")
        file.write("\n".join(emit_yaml(preset.model_dump(mode="json"))) + "\n")
