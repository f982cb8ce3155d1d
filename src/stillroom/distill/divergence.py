"""The one way from an objective and any target to a loss and its gradient by student logits.

A divergence is written once, for two rows of log-probabilities. Against top-k with a tail, student
and teacher are both brought to k + 1 buckets: the same equation holds there, and the gradient of
the tail's bucket is spread over its tokens in proportion to the student's own probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillroom.distill.targets import Dense, Target, TopKTail
from stillroom.errors import RecipeError, ShapeError

if TYPE_CHECKING:
    from stillroom.distill.method import Objective

__all__ = ["diverge", "mix", "through_softmax"]

_LEAST_MASS = 1e-30


def through_softmax(probabilities: Tensor, by_probability: Tensor) -> Tensor:
    """Turn a gradient by probabilities into one by logits: ``q * (g - sum(q * g))``, in place.

    Args:
        probabilities: q, (n, V).
        by_probability: g = dL/dq, (n, V); overwritten.
    """
    mean = torch.linalg.vecdot(probabilities, by_probability).unsqueeze(-1)
    return by_probability.sub_(mean).mul_(probabilities)


def diverge(objective: Objective, logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Return the objective's divergence (n,) and gradient (n, V); see ``Objective.divergence``."""
    heat = objective.temperature
    _check(objective, logits, target)
    log_q = torch.log_softmax(logits / heat if heat != 1 else logits, -1)
    if isinstance(target, Dense):
        teacher = target.logits / heat if heat != 1 else target.logits
        loss, grad = objective.compare(log_q, torch.log_softmax(teacher, -1))
    elif isinstance(target, TopKTail):
        loss, grad = _on_buckets(objective, log_q, target)
    else:
        loss, grad = objective.compare_samples(log_q, target)
    if heat != 1:
        scale = heat * heat if objective.t2_scale else 1.0
        loss, grad = loss * scale, grad.mul_(scale / heat)
    return loss, grad


def mix(
    objective: Objective, logits: Tensor, target: Target, labels: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return weighted loss (n,), gradient (n, V) and parts; see ``Objective.score``."""
    loss, grad = diverge(objective, logits, target)
    parts = {"divergence": float(loss.double().sum())}
    if objective.kd_weight != 1:
        loss, grad = loss * objective.kd_weight, grad.mul_(objective.kd_weight)
    if objective.ce_weight:
        log_q = torch.log_softmax(logits, -1)
        nats = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        parts["cross_entropy"] = float(nats.double().sum())
        loss = loss + objective.ce_weight * nats
        grad.add_(log_q.exp_(), alpha=objective.ce_weight)
        own = torch.full_like(nats, -objective.ce_weight).unsqueeze(-1)
        grad.scatter_add_(-1, labels.unsqueeze(-1), own)
    return loss, grad, parts


def _on_buckets(objective: Objective, log_q: Tensor, target: TopKTail) -> tuple[Tensor, Tensor]:
    top = log_q.gather(-1, target.ids)  # (n, k)
    q = log_q.exp_()
    # The tail is summed from its own terms: 1 - sum(top) would lose a small one.
    rest = q.scatter(-1, target.ids, 0.0).sum(-1, keepdim=True).clamp_min_(_LEAST_MASS)  # (n, 1)
    buckets_q = torch.cat([top, rest.log()], -1)  # (n, k + 1)
    tail = target.tail.unsqueeze(-1).clamp_min(_log_least(log_q))
    buckets_p = torch.cat([target.logprobs, tail], -1).to(log_q.dtype)
    loss, grad = objective.compare(buckets_q, torch.log_softmax(buckets_p, -1))
    spread = q.mul_(grad[:, -1:] / rest)  # du_tail / dz_i = q_i / rest
    return loss, spread.scatter_(-1, target.ids, grad[:, :-1])


def _log_least(like: Tensor) -> float:
    return float(torch.tensor(_LEAST_MASS, dtype=like.dtype).log())


def _check(objective: Objective, logits: Tensor, target: Target) -> None:
    if isinstance(target, Dense):
        if target.logits.shape != logits.shape:
            raise _misfit(tuple(target.logits.shape), tuple(logits.shape))
        return
    if target.ids.shape[0] != logits.shape[0] or target.ids.shape[1] > logits.shape[1]:
        raise _misfit(tuple(target.ids.shape), tuple(logits.shape))
    if target.temperature != objective.temperature:
        raise RecipeError(
            f"targets captured at temperature {target.temperature} cannot be used at "
            f"{objective.temperature}",
            code="distill.temperature",
            where="method.temperature",
            expected="one temperature for capture and training: a tail cannot be tempered again",
            next="capture again, or use targets.mode: dense",
        )


def _misfit(target: tuple[int, ...], logits: tuple[int, ...]) -> ShapeError:
    return ShapeError(
        f"targets of shape {target} do not fit student logits of shape {logits}",
        code="distill.shape",
        expected="the same positions, and no more tokens than the vocabulary has",
        next="lower targets.k, or capture the teacher again for this student",
    )
