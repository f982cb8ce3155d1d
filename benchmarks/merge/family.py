"""Checkpoints of a Llama's shape, bfloat16, always the same: fine-tunes of a base, or strangers."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stillroom.checkpoints import CheckpointWriter
from stillroom.checkpoints.dtypes import narrow, widen

SHAPES = {
    "1m": (2048, 128, 344, 4, 4, 2),
    "15m": (32000, 288, 768, 6, 6, 6),
    "135m": (49152, 576, 1536, 30, 9, 3),
    "360m": (49152, 960, 2560, 32, 15, 5),
    "1200m": (128256, 2048, 8192, 16, 32, 8),
}
"""Vocabulary, width, inner width, layers, heads, key-value heads."""


def make_family(
    folder: Path, size: str, count: int, *, related: bool = True
) -> tuple[Path, list[Path]]:
    """Write a base and ``count`` models, if they are not there yet; return their folders.

    A related model adds a heavy-tailed change of its own and a shared one, each about 4 % of the
    base's spread, so that task vectors correlate as those of real fine-tunes do. One that is not
    related is drawn anew: its task vector is as large as the weights, and few of its values recur.
    """
    folder = folder if related else folder / "random"
    names = ["base", *(f"tune{number}" for number in range(count))]
    for number, name in enumerate(names):
        target = folder / size / name
        if not (target / "config.json").exists():
            _write(target, size, number, related)
    return folder / size / "base", [folder / size / name for name in names[1:]]


def _write(folder: Path, size: str, number: int, related: bool) -> None:
    vocabulary, width, inner, layers, heads, kv_heads = SHAPES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    shapes = dict(_shapes(vocabulary, width, inner, layers, width // heads * kv_heads))
    plan = {name: ("BF16", shape) for name, shape in shapes.items()}
    with CheckpointWriter(folder, config=config, plan=plan) as writer:
        for name, shape in shapes.items():
            writer.begin(name, ("BF16", shape))
            bits = np.ascontiguousarray(_tensor(name, shape, number, related))
            data = memoryview(bits.reshape(-1).view(np.uint8).data)
            writer.place_rows(name, 0, data)
            writer.note_rows(data)
            writer.end(name)


def _tensor(name: str, shape: tuple[int, ...], number: int, related: bool) -> np.ndarray:
    def rng(*key: object) -> np.random.Generator:
        return np.random.default_rng([*json.dumps([name, *key]).encode()])

    base = rng("base", *(() if related else (number,))).standard_normal(
        shape, np.float32
    ) * np.float32(0.02)
    if "norm" in name:
        base += 1
    bits = narrow(base, "BF16")
    if number == 0 or not related:
        return bits
    own = rng("own", number)
    change = own.standard_normal(shape, np.float32) * np.float32(0.0007)
    change *= 1 + 4 * (own.random(shape, np.float32) > 0.95)
    change += rng("shared").standard_normal(shape, np.float32) * np.float32(0.0005)
    return narrow(widen(bits, "BF16") + change, "BF16")


def _shapes(
    vocabulary: int, width: int, inner: int, layers: int, keys: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (vocabulary, width)
    for layer in range(layers):
        start = f"model.layers.{layer}."
        yield start + "input_layernorm.weight", (width,)
        yield start + "post_attention_layernorm.weight", (width,)
        for part, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            yield f"{start}self_attn.{part}_proj.weight", (rows, width)
        yield start + "mlp.gate_proj.weight", (inner, width)
        yield start + "mlp.up_proj.weight", (inner, width)
        yield start + "mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)
