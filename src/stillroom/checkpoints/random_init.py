"""Random initialization of Llama checkpoints, with a trained tokenizer.

The tokenizer is byte-level BPE, trained on the given texts, with ChatML as its chat template, so
that plain texts and conversations can be used for training. Deterministic: the same arguments give
the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

__all__ = ["CHAT_TEMPLATE", "list_llama_shapes", "write_random_checkpoint"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADS = 4


def write_random_checkpoint(
    folder: Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    intermediate: int = 0,
    vocabulary: int = 384,
    tie: bool = True,
    dtype: torch.dtype = torch.float32,
    context_length: int = 512,
    spread: float = 0.02,
) -> Path:
    """Write a small Llama checkpoint for ``AutoModelForCausalLM``; return its folder.

    Args:
        folder: Output folder, created if missing.
        texts: Texts on which the tokenizer's merges are learned.
        seed: Random seed of the weights; shape and tokenizer do not depend on it.
        layers: Number of transformer layers.
        hidden: Hidden size; a multiple of 8. Four heads, two of them for keys and values.
        intermediate: Intermediate size of the MLPs; 0: twice ``hidden``.
        vocabulary: Requested number of tokens. config.json records the real one: at least 259
            (256 bytes and three special tokens), and fewer than requested for little text.
        tie: Whether the output embedding is the input embedding.
        dtype: Storage type of the weights.
        context_length: Maximum number of positions.
        spread: Standard deviation of the matrices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inner = intermediate or 2 * hidden
    size = _write_tokenizer(folder, texts, vocabulary, context_length)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS // 2,
        "head_dim": hidden // _HEADS,
        "vocab_size": size,
        "max_position_embeddings": context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tie,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    )
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in list_llama_shapes(config).items():
        noise = torch.randn(shape, generator=rng)
        tensors[name] = (1 + 0.02 * noise if len(shape) == 1 else spread * noise).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def list_llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a Llama model, in the order in which they are drawn."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width)
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (width,),
            f"{prefix}.self_attn.q_proj.weight": (queries, width),
            f"{prefix}.self_attn.k_proj.weight": (keys, width),
            f"{prefix}.self_attn.v_proj.weight": (keys, width),
            f"{prefix}.self_attn.o_proj.weight": (width, queries),
            f"{prefix}.post_attention_layernorm.weight": (width,),
            f"{prefix}.mlp.gate_proj.weight": (inner, width),
            f"{prefix}.mlp.up_proj.weight": (inner, width),
            f"{prefix}.mlp.down_proj.weight": (width, inner),
        }
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


def _write_tokenizer(
    folder: Path, texts: Iterable[str], vocabulary: int, context_length: int
) -> int:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in _SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": context_length,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return tokenizer.get_vocab_size()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
