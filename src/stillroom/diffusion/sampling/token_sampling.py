"""Token sampling: Gumbel-max with temperature, top-k and top-p, and suppressed tokens.

The Gumbel noise (LLaDA's ``add_gumbel_noise``) is drawn in float64, as a race of exponential
clocks: the largest ratio of probability and exponential noise wins. In float32 the noise is too
coarse in its tail, which lowers the effective temperature (Zheng et al. 2024, arXiv:2409.02908).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_exponential", "sample_tokens", "suppress_tokens"]


def suppress_tokens(logits: Tensor, tokens: Sequence[int], penalty: float = 0.0) -> Tensor:
    """Return logits with some tokens made impossible, or less likely by a penalty in nats.

    Args:
        logits: Logits, (k, V); not modified.
        tokens: Token ids.
        penalty: Subtracted from their logits; 0 makes them impossible.
    """
    if not tokens:
        return logits
    suppressed = logits.clone()
    index = torch.tensor(list(tokens), device=logits.device)
    if penalty:
        suppressed[:, index] -= penalty
    else:
        suppressed[:, index] = float("-inf")
    return suppressed


def draw_exponential(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Return standard exponential noise in float64, positive everywhere."""
    uniform = torch.rand(*shape, generator=rng, dtype=torch.float64)
    # a uniform of 0 would give noise of 0, which wins over every probability
    return uniform.clamp_(min=2.0**-53).neg_().add_(1).log_().neg_()


def sample_tokens(
    logits: Tensor, *, temperature: float, rng: torch.Generator, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Sample one token per row, (k,).

    Args:
        logits: Logits, (k, V), at least float32.
        temperature: 0 is greedy; ties go to the lowest token id.
        rng: Random generator of the sequence, on the CPU.
        top_k: Sample from so many of the most probable tokens; 0 is all.
        top_p: Nucleus sampling: cumulative probability; the most probable token is always included.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.double().cpu()
    scores = scores - scores.amax(-1, keepdim=True)
    chances = scores.div_(temperature).exp_()  # unnormalized: only ratios matter
    if 0 < top_k < chances.shape[-1]:
        least = chances.topk(top_k, -1).values[:, -1:]
        chances = chances.masked_fill(chances < least, 0.0)
    if top_p < 1.0:
        chances = chances / chances.sum(-1, keepdim=True)
        ordered, index = chances.sort(dim=-1, descending=True, stable=True)
        is_out = ordered.cumsum(-1) - ordered >= top_p
        is_out[:, 0] = False
        chances = chances.masked_fill(torch.zeros_like(is_out).scatter(1, index, is_out), 0.0)
    return (chances / draw_exponential(chances.shape, rng)).argmax(-1).to(logits.device)
