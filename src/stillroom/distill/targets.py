"""What the teacher says at n positions, in three forms, and how each is made of its logits.

Knows shapes only; how a divergence is taken against each form is in ``divergence``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stillroom.errors import RecipeError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "CacheMode",
    "Dense",
    "Sampled",
    "Target",
    "TargetMode",
    "TopKTail",
    "check_temperature",
]

CacheMode = Literal["top_k", "sampled", "dense", "own"]
TargetMode = Literal["top_k", "sampled", "dense", "live"]


@dataclass(frozen=True, slots=True)
class Dense:
    """Teacher logits over the whole vocabulary, (n, V), float32, at temperature 1."""

    logits: Tensor


@dataclass(frozen=True, slots=True)
class TopKTail:
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
    def from_logits(cls, logits: Tensor, k: int, *, temperature: float = 1.0) -> TopKTail:
        """Keep the k likeliest tokens of teacher logits, (n, V), and the mass of the others.

        Raises:
            ShapeError: If k is not between 1 and V.
            RecipeError: If the temperature is not above 0.
        """
        from stillroom.distill.condense import top_and_tail

        check_temperature(temperature, "temperature")
        _check_width(k, logits.shape[-1], "k", "targets.k")
        found = top_and_tail(logits / temperature, k)
        return cls(found["ids"], found["logprobs"], found["tail"], temperature)


@dataclass(frozen=True, slots=True)
class Sampled:
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
    ) -> Sampled:
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
    ) -> Sampled:
        """Draw k distinct tokens a row, as the teacher cache does; settings as ``from_logits``.

        Raises:
            ShapeError: If k is not between 1 and V.
            RecipeError: If a temperature is not above 0.
        """
        import torch

        from stillroom.distill.condense import draw_distinct

        check_temperature(temperature, "temperature")
        check_temperature(sampling_temperature, "sampling_temperature")
        _check_width(k, logits.shape[-1], "k", "targets.samples")
        device = logits.device
        offsets = torch.rand(len(logits), generator=generator, device=device, dtype=logits.dtype)
        drawn = draw_distinct(
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
    ) -> Sampled:
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


Target = Dense | TopKTail | Sampled


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
