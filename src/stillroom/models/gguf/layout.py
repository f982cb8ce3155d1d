"""GGUF metadata keys and tensor names of each supported architecture.

llama.cpp turns neighbouring pairs of a head's numbers where transformers turns a number of the
first half with one of the second; for architectures of its ``llama`` kind the rows of the query and
key matrices are therefore put in the other order. ``qwen2`` and ``qwen3`` turn as transformers
does. An architecture, a setting or a tensor that is not known here is refused by its name: a file
that llama.cpp loads and computes something else from would be worse than none. Attention within a
sliding window is full attention over as many tokens as the window has, so that a file of such a
model says that this is its context.

Source: Su et al. 2021, arXiv:2104.09864 (rotary positions); Peng et al. 2023, arXiv:2309.00071
(their scaling); the GGUF specification of the ggml project. Knows no tokenizer and writes nothing.
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
"""What each architecture of transformers is called in GGUF files."""

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DERIVED = "rotary_emb.inv_freq"
"""What some folders still hold and transformers computes anew."""


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """How one checkpoint lies in a GGUF file.

    ``names`` maps the file's tensors to the checkpoint's, in the file's order; ``heads`` says of
    those whose rows change order how many heads they have; ``left_out`` are those that the config
    makes superfluous, each with its reason; ``frequencies`` divide the rotary frequencies, (D/2,).
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
    """The numbers of a config that a GGUF file has keys for."""

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
    """Return how a checkpoint lies in a GGUF file.

    Args:
        checkpoint: Whose tensors are placed; nothing of them is read but names and shapes.
        config: What its config.json says, with all that its architecture derives from it.

    Raises:
        CheckpointError: If the architecture, a setting or a tensor has no place in such a file.
    """
    named = _architecture_of(checkpoint)
    shape = _ModelShape(config)
    _refuse_settings(named, shape, checkpoint)
    names, left_out = _name_tensors(checkpoint, named, int(config["num_hidden_layers"]))
    heads: dict[str, int] = {}
    if named == "llama":
        for ours, theirs in names.items():
            if ".attn_q." in ours:
                heads[theirs] = shape.heads
            elif ".attn_k." in ours:
                heads[theirs] = shape.key_heads
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
    listed = checkpoint.config.get("architectures") or ["an architecture that config.json names"]
    if listed[0] not in ARCHITECTURES:
        raise CheckpointError(
            f"{listed[0]} cannot be written as GGUF",
            code="checkpoint.gguf-architecture",
            where=str(checkpoint.folder),
            expected=f"one of: {known}",
            next="use llama.cpp's own converter for other architectures",
        )
    return ARCHITECTURES[listed[0]]


def _refuse_settings(named: str, shape: _ModelShape, checkpoint: Checkpoint) -> None:
    """Refuse what the file has no key for and llama.cpp would compute otherwise."""
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
    """Return how far attention looks back where that is less than the context; else 0."""
    window = config.get("sliding_window") or 0
    is_used = config.get("use_sliding_window", True)
    return int(window) if is_used and window < config["max_position_embeddings"] else 0


def _context_of(config: Mapping[str, Any]) -> int:
    """Return how many tokens the file is for: those over which a window changes nothing."""
    return _window_of(config) or int(config["max_position_embeddings"])


def _collect_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    window = _window_of(config)
    told = (
        f"attention looks back {window} tokens, and llama.cpp's to the beginning: the file says a "
        f"context of {window}, over which both are the same"
    )
    return (told,) if window else ()


def _name_tensors(
    checkpoint: Checkpoint, named: str, layers: int
) -> tuple[dict[str, str], dict[str, str]]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == named)
    known = get_tensor_name_map(kind, layers)
    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in checkpoint.names():
        if name.endswith(_DERIVED):
            left_out[name] = "computed from the settings"
        elif name == _HEAD and checkpoint.is_tied and _EMBEDDING in checkpoint:
            left_out[name] = "the input embedding, which it is tied to, stands for it"
        else:
            theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                raise CheckpointError(
                    f"the tensor '{name:.120}' has no place in a GGUF file of kind {named}",
                    code="checkpoint.gguf-tensor",
                    where=str(checkpoint.folder),
                    expected=f"the tensors of a stock {named} model of {layers} layers",
                    next="merge adapters into the weights first, or use llama.cpp's own converter",
                )
            found[theirs] = name
    return dict(sorted(found.items(), key=_file_order)), left_out


def _file_order(pair: tuple[str, str]) -> tuple[int, int, str]:
    """Embedding first, layers by number, the end last, as such files mostly lie."""
    name = pair[0]
    if name.startswith("blk."):
        return (1, int(name.split(".")[1]), name)
    return (0 if name.startswith("token_embd") else 2, 0, name)


def _rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings as transformers 5 writes them, also from what 4 does."""
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
    if kind in {"default", "llama3"}:  # the latter's factors are a tensor of the file
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
    """Return what Llama 3.1 divides each rotary frequency by, (D/2,).

    Long waves are stretched by the whole factor, short ones left alone, those between stretched in
    part, as Grattafiori et al. 2024 (arXiv:2407.21783, section 3.4.2) lengthen the context.
    """
    factor, low, high = (
        float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    before = int(rope["original_max_position_embeddings"])
    factors = []
    for at in range(0, shape.head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (at / shape.head_dim)
        share = (before / wave - low) / (high - low)
        factors.append(1 / ((1 - min(max(share, 0), 1)) / factor + min(max(share, 0), 1)))
    return factors


def _unsupported_error(checkpoint: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"a GGUF file cannot say {what}",
        code="checkpoint.gguf-setting",
        where=str(checkpoint.folder / "config.json"),
        expected="a decoder with silu, full attention and plain, linear, llama3 or yarn positions",
        next="use the checkpoint through transformers, or llama.cpp's own converter",
    )
