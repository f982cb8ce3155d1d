"""Purse: what the asks of a job have cost so far, and whether it may ask on.

Units that came from the journal or a cache count as well: what is bounded is what the data costs,
not what this sitting costs. Where a server is asked by several threads, units that were begun when
a bound was reached are still paid: on each side at most twice as many as threads.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.synth.harvest import Harvest
    from stillroom.synth.recipe import BudgetSettings

__all__ = ["Purse"]

_MILLION = 1e6


class Purse:
    """Counts asks, tokens, money and minutes over both sides of the split."""

    def __init__(self, budget: BudgetSettings) -> None:
        """Begin with nothing spent."""
        self.budget = budget
        self._before: list[Harvest] = []
        self._begun = time.monotonic()

    def begin(self, harvest: Harvest) -> None:
        """Count a side of the split from now on."""
        self._before.append(harvest)

    @property
    def asks(self) -> int:
        """How many asks were made."""
        return sum(harvest.asked for harvest in self._before)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and completions."""
        return sum(one.prompt_tokens + one.completion_tokens for one in self._before)

    @property
    def money(self) -> float:
        """What the tokens cost at the recipe's prices."""
        paid = sum(one.prompt_tokens for one in self._before) * self.budget.input_price
        written = sum(one.completion_tokens for one in self._before) * self.budget.output_price
        return (paid + written) / _MILLION

    def reached(self, share: float = 1.0) -> str:
        """Return which bound is reached, in words; empty while there is room.

        Args:
            share: Of every bound; the side that comes first may not spend all of it.
        """
        budget = self.budget
        minutes = (time.monotonic() - self._begun) / 60
        for name, bound, spent in (
            ("asks", budget.asks, self.asks),
            ("tokens", budget.tokens, self.tokens),
            ("money", budget.money, self.money),
            ("minutes", budget.minutes, minutes),
        ):
            if bound is not None and spent >= bound * share:
                return f"budget.{name}: {bound:g} is spent"
        return ""

    def note(self) -> str:
        """Return what was spent, for the progress line."""
        priced = self.budget.input_price or self.budget.output_price
        return f"{self.tokens} tokens" + (f", {self.money:.4g} of money" if priced else "")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, none of which depends on the clock."""
        told = {"asks": self.asks, "tokens": self.tokens, "money": round(self.money, 6)}
        prices = {"input": self.budget.input_price, "output": self.budget.output_price}
        return told | ({"prices": prices} if any(prices.values()) else {})
