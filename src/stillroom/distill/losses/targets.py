"""Teacher targets (soft labels): dense logits, top-k with tail mass, or sampled tokens.

Contains the forms of targets; divergences against them are in ``divergence``.

Reduction takes one softmax over the vocabulary and searches blocks of it: the k greatest of V
numbers are in the k blocks with the greatest maxima. The tail is summed from its terms, because 1
minus the top would lose a small one to cancellation.

Sampling is without replacement. Tokens with a probability above 1/c are always kept, the others are
sampled with c times their probability and have weight 1/c, with c such that every row has exactly k
tokens. Anshumann et al. 2025, arXiv:2503.16870, sample with replacement; both estimates are
unbiased, but here no sample is spent on a token twice. Source of the sampling scheme: Madow 1949,
doi:10.1214/aoms/1177729988 (systematic selection with unequal probabilities).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "TILE_ROWS",
    "DenseTargets",
    "DistinctSamples",
    "SampledTargets",
    "Targets",
    "TopKTargets",
    "concatenate_targets",
    "reduce_to_top_k",
    "sample_distinct",
    "slice_target",
]


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """Teacher logits over the full vocabulary, (n, V), float32, at temperature 1."""

    logits: Tensor


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The k most likely tokens and the total mass of all others.

    Args:
        ids: Token ids, (n, k), int64, distinct within a row.
        logprobs: Their log-probabilities, (n, k), float32.
        tail: Log-probability of all other tokens, (n,), float32.
        temperature: Divisor of the teacher's logits.
    """

    ids: Tensor
    logprobs: Tensor
    tail: Tensor
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class SampledTargets:
    """Tokens sampled from the teacher: an unbiased estimate of its distribution.

    The expectation of a row's weights, summed by token, is the teacher's distribution. A row need
    not sum to 1 if it was sampled at another temperature than that of the divergence; normalizing
    it would introduce a bias.

    Args:
        ids: Sampled token ids, (n, m), int64; weight 0 marks an empty entry.
        weights: Importance weights, (n, m), float32: share of the samples, times p divided by the
            sampling probability.
        logprobs: Teacher's log-probabilities of the sampled tokens, (n, m), float32.
        temperature: Divisor of the teacher's logits in ``logprobs``.
    """

    ids: Tensor
    weights: Tensor
    logprobs: Tensor
    temperature: float = 1.0

    @classmethod
    def from_scale(
        cls,
        ids: Tensor,
        logprobs: Tensor,
        scale: Tensor,
        temperature: float = 1.0,
        *,
        sampling_temperature: float = 1.0,
    ) -> SampledTargets:
        """Build from distinct tokens; weights are probability over inclusion probability.

        Args:
            ids: (n, k).
            logprobs: (n, k); -inf marks an empty entry.
            scale: (n,): the inclusion probability is
                ``min(1, exp(logprob / sampling_temperature + scale))``.
            temperature: Divisor of the teacher's logits.
            sampling_temperature: Temperature of sampling, on top of that.
        """
        chance = (logprobs / sampling_temperature + scale.unsqueeze(-1)).clamp_max_(0)
        empty = logprobs.isneginf()
        weights = (logprobs - chance).exp_().masked_fill_(empty, 0)
        return cls(ids, weights, logprobs.masked_fill(empty, 0), temperature)


Targets = DenseTargets | TopKTargets | SampledTargets


TILE_ROWS = 16
_BLOCK = 64
_MIN_BLOCK, _MOST_BLOCK = 24, 192


@dataclass(frozen=True, slots=True)
class DistinctSamples:
    """Tokens sampled without replacement, and the scale of their weights.

    Args:
        ids: (n, k), int64.
        logprobs: Teacher's log-probabilities, (n, k); -inf marks an empty entry.
        scale: (n,): the inclusion probability of a token is ``min(1, exp(logprob / s + scale))``,
            s the sampling temperature.
    """

    ids: Tensor
    logprobs: Tensor
    scale: Tensor


def reduce_to_top_k(logits: Tensor, k: int) -> Mapping[str, Tensor]:
    """Return the k most likely tokens and the mass of all others.

    Args:
        logits: (n, V), divided by the temperature.
        k: At most V.

    Returns:
        ``ids`` (n, k) by descending probability, ``logprobs`` (n, k) and ``tail`` (n,), a
        log-probability.
    """
    blocks = _BlockSelection.of(logits, k)
    tail = blocks.rest().log()
    return {"ids": blocks.ids, "logprobs": blocks.values - blocks.total, "tail": tail}


def sample_distinct(
    logits: Tensor, k: int, offsets: Tensor, *, sampling_temperature: float = 1.0
) -> DistinctSamples:
    """Sample k distinct tokens per row, so that their weighted sum is unbiased.

    Args:
        logits: (n, V), divided by the temperature of the divergence.
        k: At most V.
        offsets: (n,), uniform in [0, 1): the only source of randomness.
        sampling_temperature: Tokens are sampled from the probabilities to the power of its inverse.
    """
    blocks = _BlockSelection.of(logits, k, sampling_temperature)
    likely, tail = blocks.values.sub(blocks.total).exp_(), blocks.rest()
    sure, remaining = _split(likely, tail)  # (n, 1) each
    points = k - sure
    slot = torch.arange(k, device=logits.device).expand_as(likely)
    is_sure = slot < sure
    blocks.clear(is_sure)
    step = (offsets.unsqueeze(-1) + (slot - sure)).clamp_min(0) / points
    sampled = blocks.locate(step)
    ids = torch.where(is_sure, blocks.ids, sampled)
    empty = ~is_sure & (remaining <= 0)
    total = blocks.total
    if sampling_temperature != 1:
        total = torch.logsumexp(logits, -1, keepdim=True)
    logprobs = (logits.gather(-1, ids) - total).masked_fill_(empty, -math.inf)
    scale = points.log() - remaining.log() + total / sampling_temperature - blocks.total
    return DistinctSamples(ids, logprobs, scale.squeeze(-1))


def _split(likely: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of the most likely tokens are always kept, and the mass of all others.

    Args:
        likely: Probabilities of the k most likely, (n, k), descending.
        tail: Mass of all others, (n,).
    """
    k = likely.shape[1]
    reverse = torch.cat([tail.unsqueeze(-1), likely.flip(-1)], -1)
    after = reverse.cumsum(-1).flip(-1)[:, :-1]  # mass of a token and all less likely tokens
    slots = torch.arange(k, 0, -1, device=likely.device)
    sure = (likely * slots > after).long().cumprod(-1).sum(-1, keepdim=True)
    sure = sure.clamp_max(k - 1)
    return sure, after.gather(-1, sure)


@dataclass(slots=True)
class _BlockSelection:
    """Probabilities of a row in blocks, with the k greatest located; (n, B, W)."""

    chances: Tensor
    chosen: Tensor
    inside: Tensor
    ids: Tensor
    values: Tensor
    total: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int, temperature: float = 1.0) -> _BlockSelection:
        """Locate the k greatest logits; ``total`` is the logarithm of the softmax's denominator.

        Args:
            logits: (n, V).
            k: Number of tokens.
            temperature: Divisor of the logits in ``values`` and ``chances``.
        """
        count = len(logits)
        if temperature != 1:
            logits = logits / temperature
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
        """Remove the tokens that are always kept from the sampled mass."""
        flat = self.chances.flatten(1)
        probabilities = flat.gather(1, self.ids).masked_fill_(is_sure, 0.0)
        flat.scatter_(1, self.ids, probabilities)

    def locate(self, step: Tensor) -> Tensor:
        """Return the tokens at quantiles (n, k) of the sampled mass, (n, k)."""
        mass = self.chances.sum(-1).cumsum(-1)  # (n, B)
        point = step * mass[:, -1:]
        block = _first_above(mass, point)
        before = torch.nn.functional.pad(mass, (1, 0)).gather(1, block)
        row = torch.arange(len(step), device=step.device).unsqueeze(-1)
        inner = self.chances[row, block].cumsum(-1)  # (n, k, W)
        return block * inner.shape[-1] + _first_above(inner, (point - before).unsqueeze(-1))[..., 0]


def _first_above(rising: Tensor, point: Tensor) -> Tensor:
    """Return the index where cumulative sums first exceed each point, clamped to the last rise."""
    index = torch.searchsorted(rising, point, right=True)
    return torch.minimum(index, torch.searchsorted(rising, rising[..., -1:].contiguous()))


def _width_of(vocabulary: int) -> int:
    """Return a block width that divides the vocabulary, if one is close to the fastest width."""
    widths = range(_MIN_BLOCK, _MOST_BLOCK + 1)
    exact = [width for width in widths if vocabulary % width == 0]
    return min(exact, key=lambda width: abs(math.log(width / _BLOCK)), default=_BLOCK)


def slice_target(target: Targets, start: int, stop: int) -> Targets:
    """Return the rows ``start`` to ``stop`` of a target."""
    return _map_tensors(target, lambda name, rows: rows[start:stop])


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """Concatenate the rows of several targets of one form."""
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        raise TypeError("targets of different forms cannot be joined")
    return _map_tensors(
        first, lambda name, rows: torch.cat([getattr(part, name) for part in parts])
    )


def _map_tensors(target: Targets, change: Callable[[str, Tensor], Tensor]) -> Targets:
    values = {item.name: getattr(target, item.name) for item in fields(target)}
    changed: dict[str, Any] = {
        name: change(name, value) for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(target, **changed)
