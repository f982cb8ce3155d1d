"""LLaDA-8B, LLaDA 1.5 and other checkpoints of model type llada, loaded as Llama.

Source: Nie et al. 2025, arXiv:2502.09992; tensors are named as in OLMo. Rotary embeddings rotate
halves, as in Llama, so no rows are permuted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.checkpoints import Checkpoint
from stillroom.diffusion.interfaces import CheckpointFormat, ConvertedCheckpoint
from stillroom.diffusion.model.metadata import (
    DiffusionMetadata,
    find_mask_token,
    unsupported_config_error,
)

__all__ = ["Llada"]

_OUTER = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_BLOCK = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.(weight|bias)")
_NEEDED = {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True}
_REFUSED = ("alibi", "scale_logits", "input_emb_norm", "attention_layer_norm", "include_bias")
_PUBLISHED_VOCABULARY, _PUBLISHED_MASK, _PUBLISHED_EOT = 126464, 126336, 126348


class Llada(CheckpointFormat):
    """LLaDA's format."""

    paper: ClassVar[str] = "arXiv:2502.09992"
    model_types: ClassVar[tuple[str, ...]] = ("llada",)

    @override
    def translate(self, stored: Checkpoint) -> ConvertedCheckpoint:
        config = stored.config
        self._check(stored)
        names = {_rename(name): name for name in stored.names()}
        if config.get("weight_tying"):
            names.pop("lm_head.weight", None)
        return ConvertedCheckpoint(
            _llama_config(config),
            _metadata(stored),
            tuple(names),
            lambda name: stored.tensor(names[name]),
        )

    def _check(self, stored: Checkpoint) -> None:
        for key, expected in _NEEDED.items():
            if stored.config.get(key, expected) != expected:
                raise unsupported_config_error(
                    stored, f"{key} is {stored.config[key]!r}, not {expected!r}"
                )
        for key in _REFUSED:
            if stored.config.get(key):
                raise unsupported_config_error(stored, f"{key} is set")


def _rename(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _INNER:
        return f"model.layers.{match[1]}.{_INNER[match[2]]}.{match[3]}"
    return name


def _llama_config(config: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = int(config["d_model"]), int(config["n_heads"])
    theta = float(config.get("rope_theta", 10000.0))
    inner = config.get("mlp_hidden_size") or int(config.get("mlp_ratio", 4)) * width
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(config.get("embedding_size") or config["vocab_size"]),
        "hidden_size": width,
        "intermediate_size": int(inner),
        "num_hidden_layers": int(config["n_layers"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(config.get("n_kv_heads") or heads),
        "head_dim": width // heads,
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-5)),
        "rope_theta": theta,
        "max_position_embeddings": int(config.get("max_sequence_length", 4096)),
        "hidden_act": "silu",
        "tie_word_embeddings": bool(config.get("weight_tying", False)),
        "attention_bias": bool(config.get("include_qkv_bias", False)),
        "mlp_bias": False,
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
    }


def _metadata(stored: Checkpoint) -> DiffusionMetadata:
    config = stored.config
    mask = find_mask_token(stored, ("<|mdm_mask|>", "<|mask|>", "[MASK]"))
    is_published = config.get("embedding_size") == _PUBLISHED_VOCABULARY
    if mask is None and is_published:
        mask = _PUBLISHED_MASK
    if mask is None:
        raise unsupported_config_error(stored, "it names no mask token")
    ends = [config["eos_token_id"]] if isinstance(config.get("eos_token_id"), int) else []
    ends += [_PUBLISHED_EOT] if is_published else []
    return DiffusionMetadata(
        mask_token_id=mask,
        end_token_ids=tuple(ends),
        pad_token_id=config.get("pad_token_id"),
        layout="llada",
    )
