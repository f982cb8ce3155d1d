"""Choosing tokens by logits: what may never be chosen, exact sampling, how sure a choice is.

Source of the sampler: the Gumbel-max trick in float64, as a race of exponential clocks: the token
with the largest probability over exponential noise. In float32 the noise has too few steps in its
tail, which lowers the effective temperature (Zheng et al. 2024, arXiv:2409.02908).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["choose_tokens", "draw_exponential", "suppress"]


def suppress(logits: Tensor, tokens: Sequence[int], penalty: float = 0.0) -> Tensor:
    """Return logits with some tokens made impossible, or less likely by a penalty in nats.

    Args:
        logits: (k, V); not changed.
        tokens: Which.
        penalty: Taken off; 0 makes them impossible.
    """
    if not tokens:
        return logits
    found = logits.clone()
    index = torch.tensor(list(tokens), device=logits.device)
    if penalty:
        found[:, index] -= penalty
    else:
        found[:, index] = float("-inf")
    return found


def draw_exponential(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Return standard exponential noise in float64, above 0 everywhere."""
    uniform = torch.rand(*shape, generator=rng, dtype=torch.float64)
    # a uniform of exactly 0 would give noise of 0, which wins over every probability
    return uniform.clamp_(min=2.0**-53).neg_().add_(1).log_().neg_()


def choose_tokens(
    logits: Tensor,
    *,
    temperature: float,
    rng: torch.Generator,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Return one token a row, (k,).

    Args:
        logits: (k, V), at least float32.
        temperature: 0 takes the likeliest; ties go to the lowest token.
        rng: The text's own random numbers, on the processor.
        top_k: Only so many of the likeliest; 0 is all.
        top_p: Only the smallest set whose chances reach this; always the likeliest.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits.double().cpu()
    scores = scores - scores.amax(-1, keepdim=True)
    chances = scores.div_(temperature).exp_()  # not normalized: only ratios count
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
