"""``PolicyObjective``: a method that learns from how its own draws turned out.

Beside the divergence of ``terms``, which is what its draws estimate, such a method credits each
token that the student drew (``credit``) and pushes up the log-probability of those with a positive
credit. Credits are made once a block of steps, of all its rollouts on all ranks; the gradient is
formed in the chunked head like any other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.distill.method import Objective

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from stillroom.distill.divergence import Pair
    from stillroom.distill.rollout_batch import Drawn
    from stillroom.distill.targets import Target

    Numbers = npt.NDArray[np.float64]

__all__ = ["PolicyObjective"]


class PolicyObjective(Objective):
    """Policy gradient on the student's own draws; cross-entropy on whatever it did not write.

    The loss of a token that the student drew is ``kd_weight`` times ``-w min(r A, clip(r) A)``: A
    its credit, w the student's probability over that with which it was drawn, both as they were
    then, and r the student's probability now over then. Tokens of records, and of the teacher's
    text, bear ``ce_weight`` times their cross-entropy and nothing else.
    """

    needs_rollouts: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    clip: float | None = Field(
        default=0.2,
        gt=0,
        description="a ratio further from 1 than this earns no more; null does not clip",
    )

    @model_validator(mode="after")
    def _at_temperature_one(self) -> PolicyObjective:
        if self.temperature != 1:
            raise ValueError(
                "draws are compared at temperature 1: leave 'temperature' at 1 "
                "(rollouts.temperature is that of the draws)"
            )
        return self

    @abstractmethod
    def credit(self, gains: Sequence[Numbers]) -> list[Numbers]:
        """Return the credit of each token of each rollout of a block.

        Args:
            gains: For each rollout, (N,): the teacher's log-probability of each token minus the
                student's when it was drawn; 0 where the student did not draw it.
        """

    @override
    def terms(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the terms of the reverse KL, whose gradient the draws estimate."""
        from stillroom.distill.divergence import reverse_terms

        return reverse_terms(pair)

    @override
    def score(
        self,
        student_logits: Tensor,
        target: Target | None,
        labels: Tensor,
        *,
        rollout: Tensor | None = None,
        where: Callable[[int], str] | None = None,
        drawn: Drawn | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return loss (n,), gradient (n, V) and parts; see ``Objective.score``.

        Raises:
            DataError: If the teacher's numbers are not finite; the row is named.
            RecipeError: If the batch does not say how its tokens were drawn.
        """
        from stillroom.distill.policy_gradient import evaluate_policy

        return evaluate_policy(self, student_logits, target, labels, rollout, drawn, where)
