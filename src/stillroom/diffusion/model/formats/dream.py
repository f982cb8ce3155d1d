"""Dream-7B and DiffuCoder checkpoints, loaded as Qwen2 with shifted logits.

Source: Ye et al. 2025, arXiv:2508.15487; DiffuCoder, arXiv:2506.20639. The state at a position
predicts the next token, as in the autoregressive model that both were initialized from.
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

__all__ = ["Dream"]

_DROPPED = ("architectures", "auto_map", "model_type", "mask_token_id", "transformers_version")


class Dream(CheckpointFormat):
    """Dream's format; tensors have Qwen2's names."""

    paper: ClassVar[str] = "arXiv:2508.15487"
    model_types: ClassVar[tuple[str, ...]] = ("Dream", "dream")

    @override
    def translate(self, stored: Checkpoint) -> ConvertedCheckpoint:
        config = stored.config
        mask = find_mask_token(stored, ("<|mask|>",))
        if mask is None:
            raise unsupported_config_error(stored, "it names no mask token")
        settings = {key: value for key, value in config.items() if key not in _DROPPED}
        names = [name for name in stored.names() if not name.endswith("rotary_emb.inv_freq")]
        if config.get("tie_word_embeddings"):
            names = [name for name in names if name != "lm_head.weight"]
        ends = config.get("eos_token_id")
        return ConvertedCheckpoint(
            {
                **settings,
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "use_sliding_window": False,
            },
            DiffusionMetadata(
                mask_token_id=mask,
                logit_shift=True,
                end_token_ids=tuple(ends if isinstance(ends, list) else [ends])
                if ends is not None
                else (),
                pad_token_id=config.get("pad_token_id"),
                layout="dream",
            ),
            tuple(names),
            stored.tensor,
        )
