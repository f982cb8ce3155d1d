"""Teacher targets at n positions: dense logits, top-k with tail mass, or sampled tokens.

Knows shapes only; how a divergence is taken against each form is in ``divergence``.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import RecipeError, ShapeError

__all__ = [
    "TILE_ROWS",
    "DenseTargets",
    "DistinctSamples",
    "SampledTargets",
    "Targets",
    "TopKTargets",
    "check_temperature",
    "concatenate_targets",
    "reduce_to_top_k",
    "sample_distinct",
    "slice_target",
]


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """Teacher logits over the whole vocabulary, (n, V), float32, at temperature 1."""

    logits: Tensor


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The k likeliest tokens and the mass of all others together.

    Args:
        ids: Token ids, (n, k), int64, distinct within a row.
        logprobs: Their log-probabilities, (n, k), float32.
        tail: Log-probability that the token is none of them, (n,), float32.
        temperature: What the teacher's logits were divided by.
    """

    ids: Tensor
    logprobs: Tensor
    tail: Tensor
    temperature: float = 1.0

    @classmethod
    def from_logits(cls, logits: Tensor, k: int, *, temperature: float = 1.0) -> TopKTargets:
        """Keep the k likeliest tokens of teacher logits, (n, V), and the mass of the others.

        Raises:
            ShapeError: If k is not between 1 and V.
            RecipeError: If the temperature is not above 0.
        """
        check_temperature(temperature, "temperature")
        _check_width(k, logits.shape[-1], "k", "targets.k")
        found = reduce_to_top_k(logits / temperature, k)
        return cls(found["ids"], found["logprobs"], found["tail"], temperature)


@dataclass(frozen=True, slots=True)
class SampledTargets:
    """Tokens drawn from the teacher: an unbiased stand-in for its distribution.

    The expectation of a row's weights, summed by token, is the teacher's distribution. A row need
    not sum to 1 where the draws were made at another temperature than that of the divergence:
    dividing by the sum would bring back the bias.

    Args:
        ids: Drawn token ids, (n, m), int64; weight 0 marks a place without a draw.
        weights: Importance weights, (n, m), float32: share of the draws, times p over what was
            drawn from.
        logprobs: The teacher's log-probabilities of the drawn tokens, (n, m), float32.
        temperature: What the teacher's logits were divided by in ``logprobs``.
    """

    ids: Tensor
    weights: Tensor
    logprobs: Tensor
    temperature: float = 1.0

    @classmethod
    def from_logits(
        cls,
        logits: Tensor,
        draws: int,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        sampling_temperature: float = 1.0,
    ) -> SampledTargets:
        """Draw tokens with replacement from teacher logits, as arXiv:2503.16870, section 4, does.

        Args:
            logits: Of the teacher, (n, V).
            draws: How many a row.
            generator: Of the draws.
            temperature: Of the divergence: p is the softmax of ``logits / temperature``.
            sampling_temperature: Of the draws: they come from p to the power of its inverse, and
                the weights make up for it.

        Raises:
            ShapeError: If there are no draws.
            RecipeError: If a temperature is not above 0.
        """
        import torch

        check_temperature(temperature, "temperature")
        check_temperature(sampling_temperature, "sampling_temperature")
        _check_width(draws, None, "draws", "targets.samples")
        logprobs = torch.log_softmax(logits / temperature, -1)
        proposal = torch.log_softmax(logprobs / sampling_temperature, -1)
        ids = torch.multinomial(proposal.exp(), draws, replacement=True, generator=generator)
        own = logprobs.gather(-1, ids)
        weights = (own - proposal.gather(-1, ids)).exp() / draws
        return cls(ids, weights, own, temperature)

    @classmethod
    def distinct(
        cls,
        logits: Tensor,
        k: int,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        sampling_temperature: float = 1.0,
    ) -> SampledTargets:
        """Draw k distinct tokens a row, as the teacher cache does; settings as ``from_logits``.

        Raises:
            ShapeError: If k is not between 1 and V.
            RecipeError: If a temperature is not above 0.
        """
        import torch

        check_temperature(temperature, "temperature")
        check_temperature(sampling_temperature, "sampling_temperature")
        _check_width(k, logits.shape[-1], "k", "targets.samples")
        device = logits.device
        offsets = torch.rand(len(logits), generator=generator, device=device, dtype=logits.dtype)
        drawn = sample_distinct(
            logits / temperature, k, offsets, sampling_temperature=sampling_temperature
        )
        return cls.from_scale(
            drawn.ids,
            drawn.logprobs,
            drawn.scale,
            temperature,
            sampling_temperature=sampling_temperature,
        )

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
        """Return distinct tokens with weights: their probability over their chance to be drawn.

        Args:
            ids: (n, k).
            logprobs: (n, k); -inf marks a place without a token.
            scale: (n,): the chance is ``min(1, exp(logprob / sampling_temperature + scale))``.
            temperature: What the teacher's logits were divided by.
            sampling_temperature: What the draws were made at, on top of that.
        """
        chance = (logprobs / sampling_temperature + scale.unsqueeze(-1)).clamp_max_(0)
        empty = logprobs.isneginf()
        weights = (logprobs - chance).exp_().masked_fill_(empty, 0)
        return cls(ids, weights, logprobs.masked_fill(empty, 0), temperature)


Targets = DenseTargets | TopKTargets | SampledTargets


def check_temperature(value: float, name: str) -> None:
    """Refuse a temperature that is not a finite number above 0.

    Raises:
        RecipeError: Naming the setting.
    """
    if not (value > 0 and math.isfinite(value)):
        raise RecipeError(
            f"{name} is {value}",
            code="distill.temperature",
            where=name,
            expected="a finite number above 0",
            next="use 1.0, which leaves the distribution as it is",
        )


def _check_width(width: int, vocabulary: int | None, name: str, setting: str) -> None:
    if width < 1 or (vocabulary is not None and width > vocabulary):
        most = "" if vocabulary is None else f", at most {vocabulary}, the vocabulary's size"
        raise ShapeError(
            f"{name} is {width}",
            code="distill.shape",
            where=setting,
            expected=f"at least 1{most}",
            next=f"change {setting}",
        )


TILE_ROWS = 16


_BLOCK = 64


_MIN_BLOCK, _MOST_BLOCK = 24, 192


@dataclass(frozen=True, slots=True)
class DistinctSamples:
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


def reduce_to_top_k(logits: Tensor, k: int) -> Mapping[str, Tensor]:
    """Return the k likeliest tokens and the mass of all others.

    Args:
        logits: (n, V), divided by the temperature.
        k: At most V.

    Returns:
        ``ids`` (n, k) by falling probability, ``logprobs`` (n, k) and ``tail`` (n,), a
        log-probability too.
    """
    blocks = _BlockSelection.of(logits, k)
    rest = blocks.rest().log()
    return {"ids": blocks.ids, "logprobs": blocks.values - blocks.total, "tail": rest}


def sample_distinct(
    logits: Tensor, k: int, offsets: Tensor, *, sampling_temperature: float = 1.0
) -> DistinctSamples:
    """Draw k distinct tokens a row, so that their weighted sum is unbiased.

    Args:
        logits: (n, V), divided by the temperature of the divergence.
        k: At most V.
        offsets: (n,), uniform in [0, 1): all the chance there is.
        sampling_temperature: The draws follow the probabilities to the power of its inverse.
    """
    blocks = _BlockSelection.of(logits, k, sampling_temperature)
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
    return DistinctSamples(ids, logprobs, scale.squeeze(-1))


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
class _BlockSelection:
    """A row's probabilities in blocks, with its k greatest found; (n, B, W)."""

    chances: Tensor
    chosen: Tensor
    inside: Tensor
    ids: Tensor
    values: Tensor
    total: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int, heat: float = 1.0) -> _BlockSelection:
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
    widths = range(_MIN_BLOCK, _MOST_BLOCK + 1)
    exact = [width for width in widths if vocabulary % width == 0]
    return min(exact, key=lambda width: abs(math.log(width / _BLOCK)), default=_BLOCK)


def slice_target(target: Targets, start: int, stop: int) -> Targets:
    """Return the rows ``start`` to ``stop`` of a target."""
    if isinstance(target, DenseTargets):
        return DenseTargets(target.logits[start:stop])
    if isinstance(target, TopKTargets):
        return TopKTargets(
            target.ids[start:stop],
            target.logprobs[start:stop],
            target.tail[start:stop],
            target.temperature,
        )
    return SampledTargets(
        target.ids[start:stop],
        target.weights[start:stop],
        target.logprobs[start:stop],
        target.temperature,
    )


def concatenate_targets(parts: Sequence[Targets]) -> Targets:
    """Return the rows of several targets of one form, one after another."""
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        raise TypeError("targets of different forms cannot be joined")
    joined: dict[str, Any] = {
        one.name: torch.cat([getattr(part, one.name) for part in parts])
        for one in fields(first)
        if isinstance(getattr(first, one.name), Tensor)
    }
    kept = {one.name: getattr(first, one.name) for one in fields(first)}
    return type(first)(**{**kept, **joined})
