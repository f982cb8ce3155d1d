"""What the teacher says at n positions, in three forms.

Knows shapes only; how a divergence is taken against each form is in ``divergence``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Dense", "Sampled", "Target", "TargetMode", "TopKTail"]

TargetMode = Literal["top_k", "sampled", "dense"]


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


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens drawn from the teacher: an unbiased stand-in for its distribution.

    Args:
        ids: Drawn token ids, (n, m), int64; distinct in a row where their weight is not 0.
        weights: Share of the draws, (n, m), float32; a row sums to 1.
        logprobs: The teacher's log-probabilities of the drawn tokens, (n, m), float32.
        temperature: What the teacher's logits were divided by.
    """

    ids: Tensor
    weights: Tensor
    logprobs: Tensor
    temperature: float = 1.0


Target = Dense | TopKTail | Sampled
