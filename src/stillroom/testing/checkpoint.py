"""A tiny but real checkpoint: Llama architecture, byte-level tokenizer, chat template.

Its weights are random: it knows no language, only the shapes, files and special tokens of one that
does. Same arguments, same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

__all__ = ["CHAT_TEMPLATE", "tiny_checkpoint"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SENTENCES = (
    "A still turns wine into spirit by heating it and cooling what rises.",
    "The old house kept its stillroom beside the kitchen, cool and full of jars.",
    "What is the question, and where in the documents does the answer stand?",
    "The user asks, the assistant answers, and the system says how.",
    "In 1847 the mill ground 320 sacks of corn; by 1851 it had doubled that.",
    "Water boils at one hundred degrees, but less on the top of a mountain.",
    "She wrote the recipe down: two cups of sugar, one lemon, a pinch of salt.",
    "According to the passage, the river rises in the north and flows to the sea.",
)


def tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    vocabulary: int = 384,
    tie: bool = True,
    dtype: torch.dtype = torch.float32,
    context_length: int = 512,
) -> Path:
    """Write a small Llama checkpoint that ``AutoModelForCausalLM`` loads, and return its folder.

    Args:
        folder: Where to write; made if missing.
        seed: Draws the weights; two seeds give two models of the same shape and tokenizer.
        layers: Number of transformer layers.
        hidden: Width; a multiple of 16. Four heads, two of them for keys and values.
        vocabulary: Tokens wanted, at least 260 (256 bytes and the special ones); the few training
            sentences give about a thousand at most, and config.json says how many there are.
        tie: Whether the output embedding is the input embedding.
        dtype: Storage type of the weights.
        context_length: Positions the model knows.

    Returns:
        ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = _write_tokenizer(folder, vocabulary, context_length)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
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
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    )
    tensors = _draw_tensors(seed, layers, hidden, size, tie=tie)
    save_file(
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder


def _draw_tensors(
    seed: int, layers: int, hidden: int, vocabulary: int, *, tie: bool
) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    head = hidden // 4
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes[f"{at}.input_layernorm.weight"] = (hidden,)
        shapes[f"{at}.self_attn.q_proj.weight"] = (4 * head, hidden)
        shapes[f"{at}.self_attn.k_proj.weight"] = (2 * head, hidden)
        shapes[f"{at}.self_attn.v_proj.weight"] = (2 * head, hidden)
        shapes[f"{at}.self_attn.o_proj.weight"] = (hidden, 4 * head)
        shapes[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{at}.mlp.gate_proj.weight"] = (2 * hidden, hidden)
        shapes[f"{at}.mlp.up_proj.weight"] = (2 * hidden, hidden)
        shapes[f"{at}.mlp.down_proj.weight"] = (hidden, 2 * hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not tie:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    drawn = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=rng)
        drawn[name] = 1 + 0.02 * noise if len(shape) == 1 else 0.08 * noise
    return drawn


def _write_tokenizer(folder: Path, vocabulary: int, context_length: int) -> int:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in _SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
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
