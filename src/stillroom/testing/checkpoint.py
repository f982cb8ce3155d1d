"""Tiny Llama checkpoint with byte-level tokenizer and chat template.

Its weights are random, so its text is meaningless; shapes, files and special tokens are real. The
same arguments give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.checkpoints.random_init import CHAT_TEMPLATE, write_random_checkpoint

__all__ = ["CHAT_TEMPLATE", "tiny_checkpoint"]

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
_SPREAD = 0.08
"""Scale of the weights: large enough that logits differ and greedy text varies untrained."""


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
        folder: Target folder; created if missing.
        seed: Random seed of the weights; two seeds give two models of the same shape and tokenizer.
        layers: Number of transformer layers.
        hidden: Width; a multiple of 16. Four heads, two of them for keys and values.
        vocabulary: Requested number of tokens, at least 260 (256 bytes and the special ones); the
            training sentences give about a thousand at most; config.json has the actual number.
        tie: Whether the output embedding is the input embedding.
        dtype: Storage type of the weights.
        context_length: Maximum number of positions.

    Returns:
        ``folder``.
    """
    return write_random_checkpoint(
        folder,
        _SENTENCES,
        seed=seed,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        tie=tie,
        dtype=dtype,
        context_length=context_length,
        spread=_SPREAD,
    )
