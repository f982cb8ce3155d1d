"""From a policy objective and drawn tokens to a loss and its gradient by student logits.

The slope of a token's loss by its own log-probability is one number s, so that its gradient by the
logits is s (e_y - q): no more than cross-entropy costs. Where a method adds the whole divergence at
each position (MiniLLM's single-step part), it goes through ``evaluate`` like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillroom.distill.divergence import Where, evaluate
from stillroom.distill.targets import Target

if TYPE_CHECKING:
    from stillroom.distill.policy_method import PolicyObjective
    from stillroom.distill.rollout_batch import Drawn

__all__ = ["evaluate_policy"]

_MOST_LOG_RATIO = 20.0


def evaluate_policy(
    objective: PolicyObjective,
    logits: Tensor,
    target: Target | None,
    labels: Tensor,
    rollout: Tensor | None,
    drawn: Drawn | None,
    where: Where | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return loss (n,), gradient (n, V), and the sums of the loss's parts.

    Args:
        objective: Credits, clip and weights.
        logits: The student's, (n, V).
        target: What the teacher says there; needed where the objective asks for it.
        labels: The tokens that stand there, (n,).
        rollout: (n,), True where the student drew the token.
        drawn: How.
        where: Names a row in an error.

    Raises:
        DataError: If the teacher's numbers are not finite; the row is named.
        RecipeError: If nothing says how the tokens were drawn.
    """
    if rollout is None or drawn is None:
        from stillroom.distill.engine import no_rollouts

        raise no_rollouts(objective)
    log_q = torch.log_softmax(logits, -1)
    own = log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # (n,)
    weight = torch.where(rollout, drawn.importance.to(own.dtype), 0.0) * objective.kd_weight
    surrogate, slope, is_clipped = _surrogate(own, drawn, objective.clip)
    loss, slope = weight * surrogate, weight * slope
    parts = {
        # what the draws say of KL(q || p), and how far q has moved since they were made
        "sampled_reverse_kl": -_total(torch.where(rollout, drawn.importance * drawn.gains, 0.0)),
        "likelihood_gap": _total(torch.where(rollout, (own - drawn.old).abs(), 0.0)),
        "clipped": _total(is_clipped & rollout),
    }
    nats = torch.where(rollout, 0.0, -own)
    parts["cross_entropy"] = _total(nats)
    loss = loss + objective.ce_weight * nats
    slope = slope - objective.ce_weight * (~rollout).to(slope.dtype)
    gradient = log_q.exp().mul_(-slope.unsqueeze(-1))
    if objective.needs_target and target is not None:
        whole = evaluate(objective, logits, target, rollout=rollout, where=where)
        parts["divergence"] = _total(torch.where(rollout, whole.loss, 0.0))
        loss = loss + weight * whole.loss
        gradient += whole.gradient.mul_(weight.unsqueeze(-1))
    gradient.scatter_add_(-1, labels.unsqueeze(-1), slope.unsqueeze(-1))
    return loss, gradient, parts


def _surrogate(own: Tensor, drawn: Drawn, clip: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return -min(r A, clip(r) A), its slope by the log-probability, and where it was clipped."""
    credit = drawn.credit.to(own.dtype)
    ratio = (own - drawn.old.to(own.dtype)).clamp(max=_MOST_LOG_RATIO).exp()
    if clip is None:
        return -ratio * credit, -ratio * credit, torch.zeros_like(own, dtype=torch.bool)
    bounded = ratio.clamp(1 - clip, 1 + clip)
    is_clipped = bounded * credit < ratio * credit
    value = -torch.where(is_clipped, bounded, ratio) * credit
    return value, torch.where(is_clipped, 0.0, -ratio * credit), is_clipped


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))
