"""GGUF metadata keys and tensor names of each supported architecture.

For architectures of kind ``llama``, llama.cpp rotates adjacent pairs of a head's components where
transformers pairs the first half with the second, so the rows of the query and key matrices are
permuted. ``qwen2`` and ``qwen3`` rotate as transformers does. Unknown architectures, settings and
tensors are refused by name, as llama.cpp would load the file and compute something else.
Sliding-window attention equals full attention within one window, so the file's context length is
limited to it.

Source: Su et al. 2021, arXiv:2104.09864 (rotary positions); Peng et al. 2023, arXiv:2309.00071
(their scaling); the GGUF specification of the ggml project. Reads no tokenizer and writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillroom.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from stillroom.checkpoints import Checkpoint

__all__ = ["ARCHITECTURES", "GgufLayout", "plan_gguf_layout"]

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""GGUF name of each transformers architecture."""
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DERIVED = "rotary_emb.inv_freq"
"""Suffix of tensors in some folders that transformers recomputes."""


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """Layout of one checkpoint in a GGUF file.

    ``names`` maps the file's tensors to the checkpoint's, in file order; ``heads`` is the number of
    heads of tensors with permuted rows; ``left_out`` maps omitted tensors to the reason;
    ``frequencies`` divide the rotary frequencies, (D/2,).
    """

    architecture: str
    names: Mapping[str, str]
    heads: Mapping[str, int]
    left_out: Mapping[str, str]
    settings: Sequence[Callable[[GGUFWriter], None]]
    frequencies: Sequence[float] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _ModelShape:
    """Shape settings of a config."""

    config: Mapping[str, Any]
    heads: int = field(init=False)
    key_heads: int = field(init=False)
    head_dim: int = field(init=False)

    def __post_init__(self) -> None:
        self.heads = int(self.config["num_attention_heads"])
        self.key_heads = int(self.config.get("num_key_value_heads") or self.heads)
        width = int(self.config["hidden_size"])
        self.head_dim = int(self.config.get("head_dim") or width // self.heads)


def plan_gguf_layout(checkpoint: Checkpoint, config: Mapping[str, Any]) -> GgufLayout:
    """Return the layout of a checkpoint in a GGUF file.

    Args:
        checkpoint: Checkpoint, of which names and shapes are read.
        config: Its config.json with all derived values.

    Raises:
        CheckpointError: If the architecture, a setting or a tensor is not supported.
    """
    named = _architecture_of(checkpoint)
    shape = _ModelShape(config)
    _refuse_settings(named, shape, checkpoint)
    names, left_out = _name_tensors(checkpoint, named, int(config["num_hidden_layers"]))
    heads: dict[str, int] = {}
    if named == "llama":
        for gguf_name, name in names.items():
            if ".attn_q." in gguf_name:
                heads[name] = shape.heads
            elif ".attn_k." in gguf_name:
                heads[name] = shape.key_heads
    rope = _rope_of(config)
    frequencies = _llama3_factors(rope, shape) if rope["rope_type"] == "llama3" else ()
    settings = [*_plain_settings(config, shape), *_rope_settings(rope, config, checkpoint)]
    return GgufLayout(named, names, heads, left_out, settings, frequencies, _collect_notes(config))


def _architecture_of(checkpoint: Checkpoint) -> str:
    known = ", ".join(ARCHITECTURES)
    if checkpoint.config.get("stillroom_backend"):
        named = str(checkpoint.config["stillroom_backend"])
        raise _unsupported_error(
            checkpoint, f"a {named} model, which llama.cpp would read left to right"
        )
    listed = checkpoint.config.get("architectures") or ["a config.json without architectures"]
    if listed[0] not in ARCHITECTURES:
        raise CheckpointError(
            f"{listed[0]} cannot be exported to GGUF",
            code="checkpoint.gguf-architecture",
            where=str(checkpoint.folder),
            expected=f"one of: {known}",
            next="use llama.cpp's converter for other architectures",
        )
    return ARCHITECTURES[listed[0]]


def _refuse_settings(named: str, shape: _ModelShape, checkpoint: Checkpoint) -> None:
    """Refuse settings that have no key in GGUF and change llama.cpp's results."""
    config = shape.config
    act = config.get("hidden_act", "silu")
    if act not in {"silu", "swish"}:
        raise _unsupported_error(checkpoint, f"hidden_act: {act}")
    if named != "llama" and config.get("attention_bias") and named == "qwen3":
        raise _unsupported_error(checkpoint, "attention_bias: true")
    if float(config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise _unsupported_error(
            checkpoint, f"partial_rotary_factor: {config['partial_rotary_factor']}"
        )
    if shape.head_dim % 2 or shape.heads % shape.key_heads:
        raise _unsupported_error(checkpoint, f"head_dim: {shape.head_dim} with {shape.heads} heads")


def _window_of(config: Mapping[str, Any]) -> int:
    """Return the attention window if shorter than the context; else 0."""
    window = config.get("sliding_window") or 0
    is_used = config.get("use_sliding_window", True)
    return int(window) if is_used and window < config["max_position_embeddings"] else 0


def _context_of(config: Mapping[str, Any]) -> int:
    """Return the context length of the file, at most one attention window."""
    return _window_of(config) or int(config["max_position_embeddings"])


def _collect_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    window = _window_of(config)
    note = (
        f"attention is limited to {window} tokens, which llama.cpp does not apply: the file's "
        f"context length is {window}, within which both are equal"
    )
    return (note,) if window else ()


def _name_tensors(
    checkpoint: Checkpoint, named: str, layers: int
) -> tuple[dict[str, str], dict[str, str]]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == named)
    known = get_tensor_name_map(kind, layers)
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in checkpoint.names():
        if name.endswith(_DERIVED):
            left_out[name] = "computed from the settings"
        elif name == _HEAD and checkpoint.is_tied and _EMBEDDING in checkpoint:
            left_out[name] = "tied to the input embedding"
        else:
            gguf_name = known.get_name(name, try_suffixes=(".weight", ".bias"))
            if gguf_name is None:
                raise CheckpointError(
                    f"the tensor '{name:.120}' has no equivalent in GGUF architecture {named}",
                    code="checkpoint.gguf-tensor",
                    where=str(checkpoint.folder),
                    expected=f"the tensors of a stock {named} model of {layers} layers",
                    next="merge adapters into the weights first, or use llama.cpp's converter",
                )
            names[gguf_name] = name
    return dict(sorted(names.items(), key=_file_order)), left_out


def _file_order(pair: tuple[str, str]) -> tuple[int, int, str]:
    """Sort key of tensors: embedding, layers by number, then the rest."""
    name = pair[0]
    if name.startswith("blk."):
        return (1, int(name.split(".")[1]), name)
    return (0 if name.startswith("token_embd") else 2, 0, name)


def _rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings in the form of transformers 5."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    return rope


def _plain_settings(
    config: Mapping[str, Any], shape: _ModelShape
) -> list[Callable[[GGUFWriter], None]]:
    return [
        lambda out: out.add_context_length(_context_of(config)),
        lambda out: out.add_embedding_length(int(config["hidden_size"])),
        lambda out: out.add_block_count(int(config["num_hidden_layers"])),
        lambda out: out.add_feed_forward_length(int(config["intermediate_size"])),
        lambda out: out.add_head_count(shape.heads),
        lambda out: out.add_head_count_kv(shape.key_heads),
        lambda out: out.add_key_length(shape.head_dim),
        lambda out: out.add_value_length(shape.head_dim),
        lambda out: out.add_layer_norm_rms_eps(float(config["rms_norm_eps"])),
        lambda out: out.add_vocab_size(int(config["vocab_size"])),
        lambda out: out.add_rope_dimension_count(shape.head_dim),
    ]


def _rope_settings(
    rope: Mapping[str, Any], config: Mapping[str, Any], checkpoint: Checkpoint
) -> list[Callable[[GGUFWriter], None]]:
    from gguf import RopeScalingType

    settings: list[Callable[[GGUFWriter], None]] = [
        lambda out: out.add_rope_freq_base(rope["rope_theta"])
    ]
    kind = rope["rope_type"]
    if kind in {"default", "llama3"}:  # the factors of llama3 are a tensor of the file
        return settings
    if kind not in {"linear", "yarn"}:
        raise _unsupported_error(checkpoint, f"rope_type: {kind}")
    stretched = {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}[kind]
    settings += [
        lambda out: out.add_rope_scaling_type(stretched),
        lambda out: out.add_rope_scaling_factor(float(rope["factor"])),
    ]
    if kind == "yarn":
        settings += _yarn_settings(rope, config, checkpoint)
    return settings


def _yarn_settings(
    rope: Mapping[str, Any], config: Mapping[str, Any], checkpoint: Checkpoint
) -> list[Callable[[GGUFWriter], None]]:
    for key in ("attention_factor", "mscale", "mscale_all_dim"):
        if rope.get(key) is not None:
            raise _unsupported_error(checkpoint, f"{key}: {rope[key]} of yarn")
    before = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    return [
        lambda out: out.add_rope_scaling_orig_ctx_len(int(before)),
        lambda out: out.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32)),
        lambda out: out.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1)),
    ]


def _llama3_factors(rope: Mapping[str, Any], shape: _ModelShape) -> list[float]:
    """Return the divisors of Llama 3.1's rotary frequencies, (D/2,).

    Long wavelengths are scaled by the whole factor, short ones not at all, those between in part:
    Grattafiori et al. 2024 (arXiv:2407.21783, section 3.4.2).
    """
    factor, low, high = (
        float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    before = int(rope["original_max_position_embeddings"])
    factors = []
    for dimension in range(0, shape.head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (dimension / shape.head_dim)
        share = (before / wave - low) / (high - low)
        factors.append(1 / ((1 - min(max(share, 0), 1)) / factor + min(max(share, 0), 1)))
    return factors


def _unsupported_error(checkpoint: Checkpoint, setting: str) -> CheckpointError:
    return CheckpointError(
        f"GGUF does not support {setting}",
        code="checkpoint.gguf-setting",
        where=str(checkpoint.folder / "config.json"),
        expected="a decoder with silu, full attention and plain, linear, llama3 or yarn positions",
        next="use the checkpoint with transformers, or llama.cpp's converter",
    )
