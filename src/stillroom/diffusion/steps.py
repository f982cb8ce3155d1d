"""The base classes of what a decoding step is made of: order, commit rule, remasking, length.

A step reads the model, lets the order rank the open places of a block, lets the commit rule take
some of the first, and lets remasking take others back or change them. Any of each goes with any
other; what does not go together is refused when the settings are read. Imports no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.view import Look, Step, View

__all__ = [
    "COMMITS",
    "LENGTHS",
    "ORDERS",
    "REMASKINGS",
    "CommitRule",
    "Length",
    "Order",
    "Remasking",
]


class Order(Method):
    """Which open place is written first."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """Return a number for each candidate, (k,); the highest comes first, ties by place."""


class CommitRule(Method):
    """How many of the ranked candidates are written in one step."""

    has_plan: ClassVar[bool] = False
    """Whether the number of a block's steps is known beforehand."""

    @abstractmethod
    def take(self, view: View) -> Tensor:
        """Return which candidates are written, (k,), bool; the first always is.

        Args:
            view: Candidates by rank, the first one first.
        """

    def plan(self, step: Step) -> int:
        """Return how many steps a block takes; 0 where that is not known beforehand."""
        return 0


class Remasking(Method):
    """What happens to tokens that were written already."""

    needs: ClassVar[Literal["nothing", "written", "shadows"]] = "nothing"
    """What it looks at: nothing new; logits at written places; or logits of masks that stand
    beside them and see all but the token in their own place."""
    needs_plan: ClassVar[bool] = False
    """Whether it needs a commit rule whose steps are known."""

    @abstractmethod
    def review(self, look: Look) -> tuple[Tensor, Tensor]:
        """Return which written places are opened again, (m,) bool, and the tokens of all, (m,)."""

    @property
    def extra_steps(self) -> int:
        """How often a full block is looked at again, as long as something changes."""
        return 0


class Length(Method):
    """How many places there are, where the text's length is not known."""

    needs_whole: ClassVar[bool] = False
    """Whether places are put between others, so that nothing can be cached."""

    @abstractmethod
    def start(self, max_new_tokens: int) -> int:
        """Return how many open places the text begins with."""

    def extend(self, end_confidence: float, room: int) -> int:
        """Return how many places to add behind before anything is written.

        Args:
            end_confidence: How sure the model is, over the last places, that the text has ended.
            room: How many may be added.
        """
        return 0

    def expand(self, least_confidence: float, end_confidence: float, room: int) -> int:
        """Return how many places to put before the least sure candidate of a step."""
        return 0

    @property
    def window(self) -> int:
        """How many last places say whether the text has ended; 0 asks for nothing."""
        return 0


ORDERS = Seam("stillroom.diffusion.orders", Order)
COMMITS = Seam("stillroom.diffusion.commits", CommitRule)
REMASKINGS = Seam("stillroom.diffusion.remaskings", Remasking)
LENGTHS = Seam("stillroom.diffusion.lengths", Length)
