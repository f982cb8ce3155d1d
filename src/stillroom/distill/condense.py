"""From a teacher's logits to the few numbers a cache keeps of them.

One pass of softmax over the vocabulary; everything else looks at blocks of it. The k greatest of V
numbers lie in the k blocks with the greatest maxima, so that only those are searched; a tail is
summed from its own terms, as 1 minus the top would lose a small one.

Drawing is without replacement. Tokens likelier than 1/c are kept for sure, the others are drawn
with a chance of c times their probability and weigh 1/c, c such that every row holds exactly k
tokens. Anshumann et al. 2025, arXiv:2503.16870, draw with replacement; the estimate is unbiased
either way, but here no draw is spent on a token that is already there. Source of the scheme of
unequal chances: Madow 1949, doi:10.1214/aoms/1177729988 (systematic selection).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TILE_ROWS", "Drawn", "draw_distinct", "top_and_tail"]

TILE_ROWS = 16

_BLOCK = 64
_LEAST_BLOCK, _MOST_BLOCK = 24, 192


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens drawn without replacement, with what their weights follow from.

    Args:
        ids: (n, k), int64.
        logprobs: Of the teacher, (n, k); -inf marks a place without a token.
        scale: (n,): the chance of a token to be drawn is ``min(1, exp(logprob / s + scale))``,
            s the sampling temperature.
    """

    ids: Tensor
    logprobs: Tensor
    scale: Tensor


def top_and_tail(logits: Tensor, k: int) -> Mapping[str, Tensor]:
    """Return the k likeliest tokens and the mass of all others.

    Args:
        logits: (n, V), divided by the temperature.
        k: At most V.

    Returns:
        ``ids`` (n, k) by falling probability, ``logprobs`` (n, k) and ``tail`` (n,), a
        log-probability too.
    """
    blocks = _Blocks.of(logits, k)
    rest = blocks.rest().log()
    return {"ids": blocks.ids, "logprobs": blocks.values - blocks.total, "tail": rest}


def draw_distinct(
    logits: Tensor, k: int, offsets: Tensor, *, sampling_temperature: float = 1.0
) -> Drawn:
    """Draw k distinct tokens a row, so that their weighted sum is unbiased.

    Args:
        logits: (n, V), divided by the temperature of the divergence.
        k: At most V.
        offsets: (n,), uniform in [0, 1): all the chance there is.
        sampling_temperature: The draws follow the probabilities to the power of its inverse.
    """
    blocks = _Blocks.of(logits, k, sampling_temperature)
    likely, rest = blocks.values.sub(blocks.total).exp_(), blocks.rest()
    sure, left = _split(likely, rest)  # (n, 1) each
    points = k - sure
    place = torch.arange(k, device=logits.device).expand_as(likely)
    is_sure = place < sure
    blocks.clear(is_sure)
    step = (offsets.unsqueeze(-1) + (place - sure)).clamp_min(0) / points
    found = blocks.locate(step)
    ids = torch.where(is_sure, blocks.ids, found)
    empty = ~is_sure & (left <= 0)
    total = blocks.total
    if sampling_temperature != 1:
        total = torch.logsumexp(logits, -1, keepdim=True)
    logprobs = (logits.gather(-1, ids) - total).masked_fill_(empty, -math.inf)
    scale = points.log() - left.log() + total / sampling_temperature - blocks.total
    return Drawn(ids, logprobs, scale.squeeze(-1))


def _split(likely: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of the likeliest are kept for sure, and the mass of all others.

    Args:
        likely: Probabilities of the k likeliest, (n, k), falling.
        rest: The mass of all others, (n,).
    """
    k = likely.shape[1]
    reverse = torch.cat([rest.unsqueeze(-1), likely.flip(-1)], -1)
    after = reverse.cumsum(-1).flip(-1)[:, :-1]  # mass of a token and all less likely ones
    slots = torch.arange(k, 0, -1, device=likely.device)
    sure = (likely * slots > after).long().cumprod(-1).sum(-1, keepdim=True)
    sure = sure.clamp_max(k - 1)
    return sure, after.gather(-1, sure)


@dataclass(slots=True)
class _Blocks:
    """A row's probabilities in blocks, with its k greatest found; (n, B, W)."""

    chances: Tensor
    chosen: Tensor
    inside: Tensor
    ids: Tensor
    values: Tensor
    total: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int, heat: float = 1.0) -> _Blocks:
        """Find the k greatest logits; ``total`` is the logarithm of what divides them.

        Args:
            logits: (n, V).
            k: How many.
            heat: ``values`` and ``chances`` are of the logits divided by this.
        """
        count = len(logits)
        if heat != 1:
            logits = logits / heat
        width = _width_of(logits.shape[1])
        over = -logits.shape[1] % width
        if over:
            logits = torch.nn.functional.pad(logits, (0, over), value=-math.inf)
        parts = logits.view(count, -1, width)
        chosen = parts.amax(-1).topk(min(k, parts.shape[1]), -1, sorted=False).indices
        row = torch.arange(count, device=logits.device).unsqueeze(-1)
        top = parts[row, chosen].flatten(1).topk(k, -1)
        ids = chosen.gather(1, top.indices // width) * width + top.indices % width
        chances = torch.softmax(logits, -1)
        total = top.values[:, :1] - chances.gather(1, ids[:, :1]).log()
        return cls(chances.view_as(parts), chosen, top.indices, ids, top.values, total)

    def rest(self) -> Tensor:
        """Return the mass outside the k greatest, (n,)."""
        row = torch.arange(len(self.ids), device=self.ids.device).unsqueeze(-1)
        near = self.chances[row, self.chosen].flatten(1).scatter_(1, self.inside, 0.0).sum(-1)
        return self.chances.sum(-1).scatter_(1, self.chosen, 0.0).sum(-1).add_(near)

    def clear(self, is_sure: Tensor) -> None:
        """Take the tokens that are kept for sure out of what is drawn from."""
        flat = self.chances.flatten(1)
        kept = flat.gather(1, self.ids).masked_fill_(is_sure, 0.0)
        flat.scatter_(1, self.ids, kept)

    def locate(self, step: Tensor) -> Tensor:
        """Return the tokens at shares (n, k) of the mass that is drawn from, (n, k)."""
        mass = self.chances.sum(-1).cumsum(-1)  # (n, B)
        point = step * mass[:, -1:]
        block = _first_above(mass, point)
        before = torch.nn.functional.pad(mass, (1, 0)).gather(1, block)
        row = torch.arange(len(step), device=step.device).unsqueeze(-1)
        inner = self.chances[row, block].cumsum(-1)  # (n, k, W)
        return block * inner.shape[-1] + _first_above(inner, (point - before).unsqueeze(-1))[..., 0]


def _first_above(rising: Tensor, point: Tensor) -> Tensor:
    """Return where running sums first exceed each point, at most where they stop to rise."""
    found = torch.searchsorted(rising, point, right=True)
    return torch.minimum(found, torch.searchsorted(rising, rising[..., -1:].contiguous()))


def _width_of(vocabulary: int) -> int:
    """Return a width of blocks that divides the vocabulary, if any is near what is fast."""
    widths = range(_LEAST_BLOCK, _MOST_BLOCK + 1)
    exact = [width for width in widths if vocabulary % width == 0]
    return min(exact, key=lambda width: abs(math.log(width / _BLOCK)), default=_BLOCK)
