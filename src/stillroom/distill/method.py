"""``Objective``: what a distillation method is given and must give back.

A method states its divergence once, on two rows of log-probabilities; every form of target is
brought to that. Temperature, the T² factor and the mix with cross-entropy are the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from stillroom.errors import RecipeError
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.distill.targets import Sampled, Target

__all__ = ["METHODS", "Objective"]


class Objective(Method):
    """A divergence between teacher p and student q, with temperature and cross-entropy mix.

    The loss of a position is ``kd_weight`` times the divergence plus ``ce_weight`` times the
    cross-entropy of the token that stands in the record; nothing is normalized behind your back.
    """

    takes_samples: ClassVar[bool] = False

    temperature: float = Field(
        default=1.0, gt=0, description="both sides' logits are divided by this in the divergence"
    )
    t2_scale: bool = Field(
        default=True,
        description="multiply the divergence by temperature squared, as Hinton et al. do",
    )
    kd_weight: float = Field(default=1.0, ge=0, description="weight of the divergence")
    ce_weight: float = Field(
        default=0.0, ge=0, description="weight of the cross-entropy with the records' own tokens"
    )

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence of each row and its gradient by the student's logits.

        Args:
            log_q: The student's log-probabilities, (n, V), each row sums to 1; may be overwritten.
            log_p: The teacher's, likewise.

        Returns:
            Loss (n,) in nats, and gradient (n, V) by the logits whose softmax is q.
        """

    def compare_samples(self, log_q: Tensor, target: Sampled) -> tuple[Tensor, Tensor]:
        """Return an unbiased estimate of the divergence and of its gradient.

        Only for methods with ``takes_samples``: those that need the teacher's probabilities of the
        drawn tokens alone.

        Args:
            log_q: The student's log-probabilities, (n, V); may be overwritten.
            target: The drawn tokens.

        Raises:
            RecipeError: If the divergence needs the teacher's probability of every token.
        """
        raise RecipeError(
            f"'{self.method_name()}' cannot learn from sampled targets",
            code="distill.target",
            where="targets.mode",
            expected="a method that needs the teacher's probability of drawn tokens only",
            next="use method forward_kl, or targets.mode: top_k",
        )

    def divergence(self, student_logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Return the divergence, temperature and T² included, against any form of target.

        Args:
            student_logits: (n, V), float32 or float64.
            target: What the teacher says at the same n positions.

        Returns:
            Loss (n,) in nats and its gradient (n, V) by ``student_logits``.

        Raises:
            RecipeError: If the method cannot use this form, or the target was captured at another
                temperature.
            ShapeError: If the target does not fit the logits.
        """
        from stillroom.distill.divergence import diverge

        return diverge(self, student_logits, target)

    def score(
        self, student_logits: Tensor, target: Target, labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return the weighted loss (n,), its gradient (n, V), and the sums of its parts.

        Args:
            student_logits: (n, V).
            target: What the teacher says.
            labels: The records' own next tokens, (n,), int64.
        """
        from stillroom.distill.divergence import mix

        return mix(self, student_logits, target, labels)


METHODS = Seam("stillroom.distill.methods", Objective)
