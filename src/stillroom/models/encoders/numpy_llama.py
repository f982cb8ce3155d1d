"""Llama forward pass in NumPy: log-probabilities of short texts without torch.

Importing torch and opening a model in transformers takes several CPU seconds; scoring a question
after a few sentences takes less than one. A sequence is read by itself, so that its score does not
depend, to the last bit, on what else is scored.

Source: Touvron et al. 2023, "LLaMA", arXiv:2302.13971 (RMSNorm, rotary positions, SwiGLU); Ainslie
et al. 2023, arXiv:2305.13245 (grouped queries). Supports plain Llama checkpoints without biases or
scaled positions; others are not opened.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import CheckpointError
from stillroom.models.interfaces import Vectors
from stillroom.text.unicode import replace_surrogates

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from stillroom.checkpoints import Checkpoint

__all__ = ["NumpyLlama", "open_llama"]

_REQUIRED_SETTINGS = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


class NumpyLlama:
    """Causal language model with its tokenizer; use ``open_llama``."""

    def __init__(self, held: Checkpoint, tokenizer: Tokenizer) -> None:
        """Read the weights of a checkpoint.

        Raises:
            ValueError: If a tensor is neither float32, float16 nor bfloat16.
        """
        from threadpoolctl import ThreadpoolController

        config = held.config
        self.fingerprint = held.fingerprint
        self._tokenizer = tokenizer
        self._heads = int(config["num_attention_heads"])
        self._groups = int(config.get("num_key_value_heads") or self._heads)
        self._size = int(config.get("head_dim") or config["hidden_size"] // self._heads)
        self._epsilon = float(config.get("rms_norm_eps", 1e-6))
        self._layers = int(config["num_hidden_layers"])
        self._weights = {name: _read_tensor(held, name) for name in held.names()}
        embeddings = self._weights["model.embed_tokens.weight"]
        self._head = self._weights.get("lm_head.weight", embeddings)
        theta = _find_rope_theta(config)
        self._frequencies = theta ** -(np.arange(0, self._size, 2) / self._size)
        # One thread, so that results do not depend on the number of threads. The limit is
        # process-wide, so texts are scored one call at a time.
        self._threads = ThreadpoolController()
        self._lock = threading.Lock()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ids: list[int] = self._tokenizer.encode(
            replace_surrogates(text), add_special_tokens=False
        ).ids
        return ids

    def score(self, context: Sequence[int], completion: Sequence[int]) -> float:
        """Return the log-probability of a completion after a context, in nats.

        Args:
            context: Token ids, at least one.
            completion: Token ids.
        """
        if not completion:
            return 0.0
        with self._lock, self._threads.limit(limits=1, user_api="blas"):
            states = self._read([*context, *completion[:-1]])
            logits = states[-len(completion) :] @ self._head.T
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = logits[np.arange(len(completion)), list(completion)]
        return float((chosen - np.log(np.exp(logits).sum(axis=-1))).sum())

    def _read(self, ids: Sequence[int]) -> Vectors:
        """Return the normalized last states of a sequence, (T, D)."""
        angles = np.outer(np.arange(len(ids)), self._frequencies)
        turn = (
            np.cos(angles).astype(np.float32)[:, None],
            np.sin(angles).astype(np.float32)[:, None],
        )
        states = self._weights["model.embed_tokens.weight"][list(ids)]
        for number in range(self._layers):
            layer = f"model.layers.{number}."
            states = states + self._attend(
                self._norm(states, f"{layer}input_layernorm"), f"{layer}self_attn.", turn
            )
            read = self._norm(states, f"{layer}post_attention_layernorm")
            gate = self._linear(read, f"{layer}mlp.gate_proj")
            gate /= 1 + np.exp(-gate)
            gate *= self._linear(read, f"{layer}mlp.up_proj")
            states = states + self._linear(gate, f"{layer}mlp.down_proj")
        return self._norm(states, "model.norm")

    def _attend(self, states: Vectors, name: str, turn: tuple[Vectors, Vectors]) -> Vectors:
        queries, keys, values = (
            self._linear(states, f"{name}{part}_proj").reshape(len(states), -1, self._size)
            for part in ("q", "k", "v")
        )
        queries, keys = _rotate(queries, turn), _rotate(keys, turn)
        repeats = self._heads // self._groups
        keys, values = (np.repeat(tensor, repeats, axis=1) for tensor in (keys, values))
        queries, keys, values = (tensor.transpose(1, 0, 2) for tensor in (queries, keys, values))
        scores = queries @ keys.transpose(0, 2, 1) / np.float32(self._size**0.5)
        scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ values).transpose(1, 0, 2).reshape(len(states), -1)
        return self._linear(mixed, f"{name}o_proj")

    def _linear(self, states: Vectors, name: str) -> Vectors:
        output: Vectors = states @ self._weights[f"{name}.weight"].T
        return output

    def _norm(self, states: Vectors, name: str) -> Vectors:
        spread = np.sqrt((states * states).mean(axis=-1, keepdims=True) + self._epsilon)
        normalized: Vectors = states / spread.astype(np.float32) * self._weights[f"{name}.weight"]
        return normalized


def open_llama(folder: Path) -> NumpyLlama | None:
    """Open a folder's model, or return None if it is not a plain Llama.

    Raises nothing: folders that cannot be opened or run here are left to transformers.
    """
    from tokenizers import Tokenizer

    from stillroom.checkpoints import Checkpoint

    try:
        held = Checkpoint.open(folder)
        if not _is_plain(held.config):
            return None
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        model = NumpyLlama(held, Tokenizer.from_str(text))
        model.score([0], [0])  # fails on missing tensors or wrong shapes
    except (CheckpointError, OSError, ValueError, LookupError, TypeError, json.JSONDecodeError):
        return None
    return model


def _is_plain(config: Mapping[str, Any]) -> bool:
    return (
        config.get("model_type") == "llama"
        and all(config.get(name, value) == value for name, value in _REQUIRED_SETTINGS.items())
        and (config.get("rope_scaling") or config.get("rope_parameters") or {}).get(
            "rope_type", "default"
        )
        == "default"
        and not any(config.get(name) for name in ("auto_map", "quantization_config"))
    )


def _find_rope_theta(config: Mapping[str, Any]) -> float:
    """Return the base of the rotary frequencies, wherever this version of the file keeps it."""
    inside = config.get("rope_parameters") or {}
    return float(config.get("rope_theta") or inside.get("rope_theta") or 10_000.0)


def _rotate(states: Vectors, turn: tuple[Vectors, Vectors]) -> Vectors:
    """Rotate pairs of components (d, d + D/2) by the angles of their positions."""
    cosine, sine = turn
    first, second = np.split(states, 2, axis=-1)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _read_tensor(held: Checkpoint, name: str) -> Vectors:
    entry = held.entry(name)
    data = held.read(name, 0, entry.rows)
    if entry.dtype == "BF16":
        wide = np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(entry.shape)
    dtype = {"F32": np.float32, "F16": np.float16}.get(entry.dtype)
    if dtype is None:
        raise ValueError(entry.dtype)
    tensor: Vectors = np.frombuffer(data, dtype=dtype).reshape(entry.shape)
    return tensor.astype(np.float32, copy=False)
