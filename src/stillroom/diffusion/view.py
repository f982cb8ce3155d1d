"""What a step shows: the candidates of a block, how sure the model is of each, and the plan.

All measures come from logits before temperature: after it, at low temperatures, every confidence
rounds to 1 and the order falls back to left to right (Dream's issues 56, 72, 84 are that).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Look", "Step", "View"]


@dataclass(frozen=True)
class Step:
    """Where a text stands: step of its block (from 0), block (from 0), and how many blocks.

    ``opened`` is how many places were open when the block began.
    """

    number: int
    block: int
    blocks: int
    opened: int


@dataclass(frozen=True)
class View:
    """The candidates of a step.

    Args:
        places: Open places of the block, (k,), rising.
        tokens: What would be written there, (k,).
        logits: Untempered, what is impossible left out, (k, V), at least float32.
        step: Where the text stands.
        rng: The text's own random numbers.
        open: Open places of the block, where some are no candidates in this step; 0 says that all
            are.
    """

    places: Tensor
    tokens: Tensor
    logits: Tensor
    step: Step
    rng: torch.Generator
    open: int = 0

    @property
    def open_count(self) -> int:
        """How many places of the block are open, k or more."""
        return self.open or len(self.places)

    @cached_property
    def log_total(self) -> Tensor:
        """The logarithm of the softmax's denominator, (k, 1)."""
        return torch.logsumexp(self.logits, -1, keepdim=True)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of each candidate's token, (k,), float64, on the processor."""
        own = self.logits.gather(-1, self.tokens[:, None])
        return (own - self.log_total)[:, 0].double().exp().cpu()

    @cached_property
    def margin(self) -> Tensor:
        """The likeliest token's probability less the second's, (k,), float64."""
        two = (self.logits.topk(2, -1).values - self.log_total).double().exp()
        return (two[:, 0] - two[:, 1]).cpu()

    @cached_property
    def entropy(self) -> Tensor:
        """Of each candidate's distribution, in nats, (k,), float64."""
        logprobs = self.logits - self.log_total
        terms = torch.where(logprobs == float("-inf"), 0.0, logprobs.exp() * logprobs)
        return -terms.sum(-1).double().cpu()

    def ordered(self, by: Tensor) -> View:
        """Return the view with its candidates in another order, (k,) indices."""
        device = self.logits.device
        found = View(
            self.places[by],
            self.tokens[by.to(device)],
            self.logits[by.to(device)],
            self.step,
            self.rng,
            self.open_count,
        )
        for name in ("confidence", "margin", "entropy"):
            if name in self.__dict__:
                found.__dict__[name] = self.__dict__[name][by]
        if "log_total" in self.__dict__:
            found.__dict__["log_total"] = self.log_total[by.to(device)]
        return found


@dataclass(frozen=True)
class Look:
    """What was written so far in a block, for remasking.

    Args:
        places: Places written in earlier steps, (m,), rising.
        tokens: What stands there, (m,).
        confidence: Of each when it was chosen, (m,), float64.
        logits: What the model says there now, (m, V), where the method asks for it.
        step: Where the text stands.
        steps: How many steps the block will take, where that is known; else 0.
        rng: The text's own random numbers.
    """

    places: Tensor
    tokens: Tensor
    confidence: Tensor
    logits: Tensor | None
    step: Step
    steps: int
    rng: torch.Generator
