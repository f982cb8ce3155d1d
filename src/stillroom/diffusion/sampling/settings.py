"""Decoding settings and named presets; imports no torch.

A job of kind ``diffusion.tune`` writes a preset; ``sample --preset`` and the backend's setting
``preset`` read it, from its file or from tune's output folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator
from typing_extensions import override

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
from stillroom.registry.method import MAX_INT

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
    """End tokens (EOS): early stop and suppression, applied by ``sampler.DiffusionSampler``.

    LLaDA's ``logits_eos_inf`` is ``never``, its ``confidence_eos_eot_inf`` is ``last``.
    """

    stop_early: bool = Field(
        default=True, description="stop once an end token has no masked positions before it"
    )
    last: bool = Field(
        default=False, description="unmask end tokens only where there are no other candidates"
    )
    never: bool = Field(default=False, description="suppress end tokens")
    penalty: float = Field(
        default=0.0, ge=0, description="penalty on the logits of end tokens, in nats"
    )

    @override
    def list_unused(self) -> dict[str, str]:
        names = ("last", "penalty") if self.never else ()
        return {**super().list_unused(), **dict.fromkeys(names, "never suppresses all end tokens")}


class DecodeSettings(Settings):
    """Decoding settings: unmasking, remasking, blocks, guidance, sampling, ends, length, cache.

    ``max_new_tokens`` is LLaDA's ``gen_length``.
    """

    max_new_tokens: int = Field(default=128, ge=0, description="maximum number of new tokens")
    block_length: int | None = Field(
        default=None,
        ge=1,
        description="tokens per block; blocks are decoded from left to right. null: the blocks of "
        "the attention, else a single block; the last block may be shorter",
    )
    order: Annotated[UnmaskOrder, UNMASK_ORDERS.choice("confidence")] = Field(
        default_factory=lambda: UNMASK_ORDERS.build("confidence"),
        description="unmasking order: which position is unmasked first",
    )
    commit: Annotated[UnmaskRule, UNMASK_RULES.choice("threshold")] = Field(
        default_factory=lambda: UNMASK_RULES.build("threshold"),
        description="unmasking rule: how many positions are unmasked per step",
    )
    remasking: Annotated[Remasking, REMASKINGS.choice()] | None = Field(
        default=None, description="remasking of unmasked tokens; null for none"
    )
    length: Annotated[LengthPolicy, LENGTH_POLICIES.choice("fixed")] = Field(
        default_factory=lambda: LENGTH_POLICIES.build("fixed"), description="number of mask tokens"
    )
    cache: Annotated[KVCacheMethod, KV_CACHES.choice()] | None = Field(
        default=None,
        description="KV cache method; null: the exact one (finished blocks with block-causal "
        "attention, else none)",
    )
    temperature: float = Field(default=0.0, ge=0, description="sampling temperature; 0 is greedy")
    top_k: int = Field(default=0, ge=0, description="sample from the k most probable; 0 is all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="nucleus sampling: cumulative probability"
    )
    cfg_scale: float = Field(
        default=0.0,
        ge=0,
        description="classifier-free guidance scale, away from logits without the given text; 0: "
        "none",
    )
    end: EndSettings = Field(default_factory=EndSettings, description="handling of end tokens")
    seed: int = Field(
        default=0, ge=0, le=MAX_INT, description="random seed of sequences without their own"
    )
    rows: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="sequences per forward pass; 1: results are independent of the batch, bit for "
        "bit",
    )

    @model_validator(mode="after")
    def _check_combination(self) -> DecodeSettings:
        if self.remasking is not None and self.remasking.needs_plan and not self.commit.has_plan:
            raise ValueError(
                f"remasking '{self.remasking.method_name()}' needs a known number of steps, which "
                f"commit '{self.commit.method_name()}' does not have: use quota or top_k"
            )
        if (
            self.length.needs_whole
            and self.cache is not None
            and self.cache.method_name() != "whole"
        ):
            raise ValueError(
                f"length '{self.length.method_name()}' inserts positions, which rules out "
                "caching: use cache whole"
            )
        return self

    def check_against(self, metadata: DiffusionMetadata) -> None:
        """Check the settings against a model.

        Raises:
            RecipeError: If the model does not support one; names the setting.
        """
        attention, block = metadata.attention, metadata.block_size
        if self.cache is not None and attention not in self.cache.attentions:
            raise _mismatch_error(
                f"cache '{self.cache.method_name()}' needs block-causal attention, and the "
                f"model's is {attention}",
                "prefix, dual or delayed (approximate), or whole",
            )
        if block is not None and self.block_length not in (None, block):
            raise _mismatch_error(
                f"block_length {self.block_length} differs from the model's block size {block}",
                f"block_length {block}, or null",
            )
        if self.length.needs_whole and attention != "full":
            raise _mismatch_error(
                f"length '{self.length.method_name()}' needs a model with full attention",
                "length fixed",
            )
        needs = self.remasking.needs if self.remasking is not None else "nothing"
        if needs == "shadows" and metadata.logit_shift:
            raise _mismatch_error(
                "remasking 'wino' needs unshifted logits, and the model's are shifted by one "
                "position",
                "remasking remdm, or none",
            )

    def cache_for(self, metadata: DiffusionMetadata) -> KVCacheMethod:
        """Return the cache method for a model."""
        if self.cache is not None:
            return self.cache
        is_by_blocks = metadata.attention == "block_causal" and not self.length.needs_whole
        return KV_CACHES.build("block" if is_by_blocks else "whole")


def _mismatch_error(reason: str, expected: str) -> RecipeError:
    return RecipeError(
        reason,
        code="diffusion.decode",
        expected=expected,
        next="change the setting, or omit it for its default",
    )


PRESET_FILE = "preset.yaml"


class DecodingPreset(Settings):
    """Named decoding settings."""

    name: str = Field(description="name of the preset, recorded in runs")
    checkpoint: str = Field(
        default="", description="fingerprint of the weights it was tuned on; empty: any"
    )
    settings: DecodeSettings = Field(
        default_factory=DecodeSettings, description="settings of `stillroom diffusion sample --set`"
    )
    measured: dict[str, float | int | str] = Field(
        default_factory=dict, description="results of the sweep for these settings"
    )

    def check_against(self, fingerprint: str) -> None:
        """Check that the preset was tuned on these weights.

        Raises:
            RecipeError: If it was tuned on others.
        """
        if self.checkpoint and self.checkpoint != fingerprint:
            raise RecipeError(
                f"preset '{self.name}' was tuned on other weights "
                f"({self.checkpoint[:12]}, not {fingerprint[:12]})",
                code="diffusion.preset",
                expected="the checkpoint it was tuned on",
                next="tune this checkpoint, or remove the line 'checkpoint' from the preset to "
                "use it untuned",
            )


def read_preset(path: Path) -> DecodingPreset:
    """Read a preset from its file, or from tune's output folder.

    Raises:
        RecipeError: If there is none, or it is invalid; lists all problems.
    """
    candidates = (path, path / PRESET_FILE, path / "output" / PRESET_FILE)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise RecipeError(
            f"no preset at {path}",
            code="diffusion.preset",
            expected="a preset file, or the output folder of tune",
            next="stillroom run diffusion.tune model=CHECKPOINT records=R --out FOLDER",
        )
    return parse_group(DecodingPreset, file.read_text(encoding="utf-8"), str(file))


def find_preset(checkpoint: Path) -> Path | None:
    """Return the preset that ``tune --write`` left at a checkpoint, or None.

    It is in the checkpoint's folder; for a run, next to artifact.json, outside its output.
    """
    candidates = [checkpoint / PRESET_FILE]
    if checkpoint.name == "output" and (checkpoint.parent / "artifact.json").is_file():
        candidates.append(checkpoint.parent / PRESET_FILE)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def write_preset(path: Path, preset: DecodingPreset) -> None:
    """Write a preset as YAML."""
    with atomic_write(path) as file:
        file.write("# stillroom diffusion sample CHECKPOINT --preset " + PRESET_FILE + "\n")
        file.write("\n".join(emit_yaml(preset.model_dump(mode="json"))) + "\n")
