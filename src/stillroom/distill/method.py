"""``Objective``: what a distillation method is given and must give back.

A method states its divergence once, as one term a token; every form of target is brought to that.
Temperature, the T² factor and the mix with cross-entropy are the same for all. Knows neither heads
nor batches.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from stillroom.distill.crossing import CROSSINGS
from stillroom.distill.feature import FEATURES
from stillroom.distill.rollout import ROLLOUTS
from stillroom.distill.verifying import VERIFIERS
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from stillroom.distill.divergence import Pair
    from stillroom.distill.rollout_batch import Drawn
    from stillroom.distill.targets import Target

__all__ = ["CROSSINGS", "FEATURES", "METHODS", "ROLLOUTS", "VERIFIERS", "Objective"]


class Objective(Method):
    """A divergence between teacher p and student q, with temperature and cross-entropy mix.

    The loss of a position is ``kd_weight`` times the divergence plus ``ce_weight`` times the
    cross-entropy of the token that stands in the record; nothing is normalized behind your back.
    ``temperature`` is that of the loss alone: what text is drawn at is set where text is drawn.

    A method with ``needs_rollouts`` must be told which positions stand in the student's own text.
    One with ``needs_scores`` asks for the teacher's log-probabilities of the tokens there, and only
    one with ``needs_target`` for its distributions.
    One with ``detaches_weights`` holds weights that depend on q fixed in its gradient, as its paper
    does, so that the gradient is not that of the value.
    """

    needs_rollouts: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_target: ClassVar[bool] = True
    detaches_weights: ClassVar[bool] = False

    temperature: float = Field(
        default=1.0,
        gt=0,
        description="both sides' logits are divided by this in the divergence, and nowhere else",
    )
    t2_scale: bool = Field(
        default=True,
        description="multiply the divergence by temperature squared, as Hinton et al. do",
    )
    kd_weight: float = Field(default=1.0, ge=0, description="weight of the divergence")
    ce_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the cross-entropy with the records' own tokens, at temperature 1",
    )

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's distributions are needed: at weight 0 nothing comes of them."""
        return self.needs_target and self.kd_weight > 0

    @property
    def takes_samples(self) -> bool:
        """Whether drawn tokens suffice: then ``vanishing`` says what the others come to."""
        return False

    @abstractmethod
    def terms(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return each outcome's part of the divergence, and its slope by the student's log q.

        Args:
            pair: Student and teacher; its tensors are read only.

        Returns:
            Terms (n, V) in nats, whose row sums are the divergence, and their slopes (n, V), new
            tensors: the derivative of a row's sum by each ``log q``. A multiple of q may be added
            to a row of slopes, as it falls out in the softmax; choose it so that equal sides have
            slope 0.
        """

    def vanishing(self, pair: Pair) -> tuple[Tensor | float, Tensor | float]:
        """Return what terms and slopes are, in units of q, as p goes to 0 beside q.

        Only for methods with ``takes_samples``: their terms minus this much of q stay below a
        multiple of p, so that their sum has an unbiased estimate of finite variance.

        Args:
            pair: Student and teacher at the drawn tokens.

        Raises:
            RecipeError: If the method does not take samples.
        """
        from stillroom.distill.divergence import refuse_draws

        raise refuse_draws(self)

    def divergence(
        self, student_logits: Tensor, target: Target, *, rollout: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence, temperature and T² included, against any form of target.

        Args:
            student_logits: (n, V), float32 or float64.
            target: What the teacher says at the same n positions.
            rollout: (n,), True where the position stands in the student's own text.

        Returns:
            Loss (n,) in nats and its gradient (n, V) by ``student_logits``.

        Raises:
            DataError: If the teacher's numbers are not finite; the row is named.
            RecipeError: If the method cannot use this form, or the target was captured at another
                temperature.
            ShapeError: If the target does not fit the logits.
        """
        from stillroom.distill.divergence import evaluate

        scored = evaluate(self, student_logits, target, rollout=rollout)
        return scored.loss, scored.gradient

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
        """Return the weighted loss (n,), its gradient (n, V), and the sums of its parts.

        Args:
            student_logits: (n, V).
            target: What the teacher says; None only where ``kd_weight`` is 0.
            labels: The records' own next tokens, (n,), int64.
            rollout: (n,), True where the position stands in the student's own text.
            where: Names a row in an error.
            drawn: How the tokens of that text were drawn; a divergence does not ask.

        Raises:
            DataError: If the teacher's numbers are not finite; the row is named.
            RecipeError: As ``divergence`` does.
            ShapeError: If the target does not fit the logits.
        """
        from stillroom.distill.divergence import evaluate, evaluate_text

        if target is None and self.kd_weight:
            raise ValueError("a divergence needs a target")
        if target is None:
            scored = evaluate_text(self.ce_weight, student_logits, labels)
            return scored.loss, scored.gradient, scored.parts
        scored = evaluate(self, student_logits, target, labels, rollout=rollout, where=where)
        return scored.loss, scored.gradient, scored.parts


METHODS = Seam("stillroom.distill.methods", Objective)
