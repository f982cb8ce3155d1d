"""A2D checkpoints (autoregressive to diffusion) of Llama, Qwen2 and Qwen3, from the dllm project.

Source: Zhou et al. 2026, arXiv:2602.22661. Tensors have the stock names; logits are not shifted.
Checkpoints trained by block diffusion have the same config: override attention and block_size.
"""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.diffusion.interfaces import CheckpointFormat, ConvertedCheckpoint
from stillroom.diffusion.model.metadata import (
    DiffusionMetadata,
    find_mask_token,
    unsupported_config_error,
)

__all__ = ["A2D"]

_STOCK = {
    "a2d-llama": ("llama", "LlamaForCausalLM"),
    "a2d-qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "a2d-qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_DROPPED = ("architectures", "auto_map", "model_type", "mask_token_id", "transformers_version")


class A2D(CheckpointFormat):
    """Stock tensors under a separate model type."""

    paper: ClassVar[str] = "arXiv:2602.22661"
    model_types: ClassVar[tuple[str, ...]] = tuple(_STOCK)

    @override
    def translate(self, stored: Checkpoint) -> ConvertedCheckpoint:
        config = stored.config
        kind, architecture = _STOCK[str(config["model_type"])]
        mask = find_mask_token(stored, ("<|mask|>", "[MASK]"))
        if mask is None:
            raise unsupported_config_error(
                stored, "neither config.json nor tokenizer.json names a mask token"
            )
        settings = {key: value for key, value in config.items() if key not in _DROPPED}
        names = list(stored.names())
        if config.get("tie_word_embeddings"):
            names = [name for name in names if name != "lm_head.weight"]
        ends = config.get("eos_token_id")
        listed = ends if isinstance(ends, list) else [ends] if ends is not None else []
        pad = config.get("pad_token_id")
        return ConvertedCheckpoint(
            {**settings, "architectures": [architecture], "model_type": kind},
            DiffusionMetadata(
                mask_token_id=mask,
                end_token_ids=tuple(int(end) for end in listed),
                pad_token_id=None if pad == mask else pad,
                layout="a2d",
            ),
            tuple(names),
            stored.tensor,
        )
