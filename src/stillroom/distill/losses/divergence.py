"""Loss and gradient by student logits of any objective against any form of target.

A divergence is written once, as one term a token. Dense targets sum the terms over the vocabulary.
Against top-k with a tail, both sides are brought to k + 1 buckets: the same terms hold there, and
the gradient of the tail's bucket is spread over its tokens in proportion to the student's own
probabilities. Against drawn tokens, the sum of the terms is estimated from those that were drawn,
without bias: where the teacher's probability vanishes a term tends to a known multiple of q, whose
sum over the vocabulary is known, so that only what is left needs to be drawn.

The slope of a token's loss by its own log-probability is one number s, so that its gradient by the
logits is s (e_y - q): no more than cross-entropy costs. Where a method adds the whole divergence at
each position (MiniLLM's single-step part), it goes through ``evaluate`` like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillroom.distill.losses.targets import DenseTargets, SampledTargets, Targets, TopKTargets
from stillroom.errors import DataError, RecipeError, ShapeError

if TYPE_CHECKING:
    from stillroom.distill.data.tokenized import SamplingInfo
    from stillroom.distill.interfaces import DistillationObjective, PolicyGradientObjective

__all__ = [
    "DistributionPair",
    "LossAndGrad",
    "compute_relation_kl",
    "compute_relation_scores",
    "evaluate_cross_entropy",
    "evaluate_objective",
    "evaluate_policy_objective",
    "forward_kl_terms",
    "missing_rollouts_error",
    "mixture_ratio",
    "reverse_kl_terms",
    "sampled_targets_error",
    "skew_forward_kl_terms",
    "skew_reverse_kl_terms",
]


_MIN_MASS = 1e-30


_MAX_LOG_RATIO = 80.0  # what exp can hold in float32, with room


Terms = tuple[Tensor, Tensor]


Where = Callable[[int], str]


class DistributionPair:
    """Student q and teacher p at n positions over the same outcomes, (n, V) each.

    What is derived from the log-probabilities is computed on first use and kept; a method reads
    these tensors and never writes to them.
    """

    __slots__ = ("_p", "_q", "_ratio", "log_p", "log_q", "rollout")

    def __init__(self, log_q: Tensor, log_p: Tensor, rollout: Tensor | None = None) -> None:
        """Join the log-probabilities of both sides.

        Args:
            log_q: The student's.
            log_p: The teacher's.
            rollout: (n,), True where the position stands in the student's own text.
        """
        self.log_q, self.log_p, self.rollout = log_q, log_p, rollout
        self._q: Tensor | None = None
        self._p: Tensor | None = None
        self._ratio: Tensor | None = None

    @property
    def q(self) -> Tensor:
        """The student's probabilities."""
        if self._q is None:
            self._q = self.log_q.exp()
        return self._q

    @property
    def p(self) -> Tensor:
        """The teacher's probabilities."""
        if self._p is None:
            self._p = self.log_p.exp()
        return self._p

    @property
    def log_ratio(self) -> Tensor:
        """``log p - log q``."""
        if self._ratio is None:
            self._ratio = self.log_p - self.log_q
        return self._ratio

    def select(self, rows: Tensor) -> DistributionPair:
        """Return the pair at some of the rows, chosen by a mask (n,)."""
        return DistributionPair(self.log_q[rows], self.log_p[rows])


def forward_kl_terms(pair: DistributionPair) -> Terms:
    """Return the terms of KL(p || q); see ``DistillationObjective.terms``."""
    return pair.p * pair.log_ratio, pair.q - pair.p


def reverse_kl_terms(pair: DistributionPair) -> Terms:
    """Return the terms of KL(q || p)."""
    term = -(pair.q * pair.log_ratio)
    return term, term


def skew_forward_kl_terms(pair: DistributionPair, alpha: float) -> Terms:
    """Return the terms of KL(p || m) with m = alpha p + (1 - alpha) q."""
    over = mixture_ratio(-pair.log_ratio, 1 - alpha)  # m / p
    term = over.log().mul_(pair.p).neg_()
    slope = over.reciprocal_().neg_().add_(1).mul_(pair.q).mul_(1 - alpha)
    return term, slope


def skew_reverse_kl_terms(pair: DistributionPair, alpha: float) -> Terms:
    """Return the terms of KL(q || m) with m = (1 - alpha) p + alpha q."""
    over = mixture_ratio(pair.log_ratio, 1 - alpha)  # m / q
    term = over.log().mul_(pair.q).neg_()
    slope = over.reciprocal_().neg_().add_(1).mul_(pair.q).mul_(alpha).add_(term)
    return term, slope


def mixture_ratio(log_ratio: Tensor, share: float) -> Tensor:
    """Return ``(share a + (1 - share) b) / b`` of ``log a - log b``, as a new tensor.

    Exactly 1 where both are equal. Where the ratio would overflow, b is too small to count and the
    ratio is held at e^80.
    """
    return log_ratio.clamp(max=_MAX_LOG_RATIO).exp_().sub_(1).mul_(share).add_(1)


@dataclass(frozen=True, slots=True)
class LossAndGrad:
    """Weighted loss (n,), its gradient by the student's logits (n, V), and the parts' sums."""

    loss: Tensor
    gradient: Tensor
    parts: dict[str, float]


def evaluate_objective(
    objective: DistillationObjective,
    logits: Tensor,
    target: Targets,
    labels: Tensor | None = None,
    *,
    rollout: Tensor | None = None,
    where: Where | None = None,
) -> LossAndGrad:
    """Return weighted loss, gradient and parts; without labels the divergence alone.

    Args:
        objective: Divergence, temperature and weights.
        logits: The student's, (n, V).
        target: What the teacher says at the same positions.
        labels: The records' own next tokens, (n,).
        rollout: (n,), True where the position stands in the student's own text.
        where: Names a row in an error.

    Raises:
        DataError: If the teacher's numbers are not finite; the row is named.
        RecipeError: If the method cannot use this form, or the target has another temperature.
        ShapeError: If the target does not fit the logits.
    """
    heat = objective.temperature
    _check_target(objective, logits, target, where or _name_row)
    log_q = torch.log_softmax(logits / heat if heat != 1 else logits, -1)
    loss, slope, q = _dense_divergence(objective, log_q, target, rollout)
    hot = heat * heat if objective.t2_scale else 1.0
    scale = hot if labels is None else hot * objective.kd_weight
    parts: dict[str, float] = {} if labels is None else {"divergence": _total(loss) * hot}
    mean = slope.sum(-1, keepdim=True)  # (n, 1)
    if scale != 1:
        loss = loss * scale
    if scale != heat:
        slope.mul_(scale / heat)
        mean.mul_(scale / heat)
    if labels is None or not objective.ce_weight:
        return LossAndGrad(loss, slope.addcmul_(q, mean, value=-1), parts)
    if heat != 1:
        slope.addcmul_(q, mean, value=-1)
        log_q = torch.log_softmax(logits, -1)
        q, mean = log_q.exp(), torch.zeros_like(mean)
    nats = -log_q.gather(-1, labels.unsqueeze(-1))  # (n, 1)
    parts["cross_entropy"] = _total(nats)
    loss = loss + objective.ce_weight * nats.squeeze(-1)
    slope.addcmul_(q, mean.sub_(objective.ce_weight), value=-1)
    own = torch.full_like(nats, -objective.ce_weight)
    return LossAndGrad(loss, slope.scatter_add_(-1, labels.unsqueeze(-1), own), parts)


def evaluate_cross_entropy(ce_weight: float, logits: Tensor, labels: Tensor) -> LossAndGrad:
    """Return the weighted cross-entropy of the tokens that stand there, with gradient and part.

    Args:
        ce_weight: Its weight.
        logits: The student's, (n, V).
        labels: The records' own next tokens, (n,).
    """
    log_q = torch.log_softmax(logits, -1)
    index = labels.unsqueeze(-1)
    nats = -log_q.gather(-1, index)  # (n, 1)
    gradient = log_q.exp_().mul_(ce_weight)
    gradient.scatter_add_(-1, index, torch.full_like(nats, -ce_weight))
    return LossAndGrad(ce_weight * nats.squeeze(-1), gradient, {"cross_entropy": _total(nats)})


def sampled_targets_error(objective: DistillationObjective) -> RecipeError:
    """Return the error of a method that cannot learn from drawn tokens."""
    return RecipeError(
        f"'{objective.method_name()}' cannot learn from sampled targets: where the teacher finds a "
        "token ever less likely its terms grow without bound, so no number of draws estimates them",
        code="distill.target",
        where="targets.mode",
        expected="a method whose terms stay bounded, as forward_kl, jsd, skew_kl or tvd",
        next="use one of those, or targets.mode: top_k",
    )


def _dense_divergence(
    objective: DistillationObjective, log_q: Tensor, target: Targets, rollout: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the divergence (n,), its slope by log q (n, V), which is new, and q (n, V)."""
    if isinstance(target, DenseTargets):
        heat = objective.temperature
        logits = target.logits.to(log_q.dtype)
        pair = DistributionPair(
            log_q, torch.log_softmax(logits / heat if heat != 1 else logits, -1), rollout
        )
        term, slope = objective.terms(pair)
        return term.sum(-1), slope, pair.q
    if isinstance(target, TopKTargets):
        return _topk_divergence(objective, log_q, target, rollout)
    return _sampled_divergence(objective, log_q, target, rollout)


def _topk_divergence(
    objective: DistillationObjective, log_q: Tensor, target: TopKTargets, rollout: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    q = log_q.exp()
    # The tail is summed from its own terms: 1 - sum(top) would lose a small one.
    spread = q.scatter(-1, target.ids, 0.0)  # (n, V)
    rest = spread.sum(-1, keepdim=True).clamp_min_(_MIN_MASS)  # (n, 1)
    buckets_q = torch.cat([log_q.gather(-1, target.ids), rest.log()], -1)  # (n, k + 1)
    tail = target.tail.unsqueeze(-1).clamp_min(math.log(_MIN_MASS))
    buckets_p = torch.cat([target.logprobs, tail], -1).to(log_q.dtype)
    pair = DistributionPair(buckets_q, torch.log_softmax(buckets_p, -1), rollout)
    term, slope = objective.terms(pair)
    spread.mul_(slope[:, -1:] / rest)  # d log(rest) / d log(q_i) = q_i / rest
    return term.sum(-1), spread.scatter_(-1, target.ids, slope[:, :-1]), q


def _sampled_divergence(
    objective: DistillationObjective, log_q: Tensor, target: SampledTargets, rollout: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    log_p = target.logprobs.double()
    pair = DistributionPair(log_q.gather(-1, target.ids).double(), log_p, rollout)  # (n, m)
    term, slope = objective.terms(pair)
    of_term, of_slope = objective.vanishing(pair)
    drawn = target.weights > 0
    odds = (target.weights.double() / pair.p).where(drawn, 0.0)
    kept = ((term - of_term * pair.q) * odds).where(drawn, 0.0)
    loss = kept.sum(-1) + (of_term if isinstance(of_term, float) else of_term.squeeze(-1))
    kept = ((slope - of_slope * pair.q) * odds).where(drawn, 0.0)
    sparse = torch.zeros_like(log_q).scatter_add_(-1, target.ids, kept.to(log_q.dtype))
    return loss.to(log_q.dtype), sparse, log_q.exp()


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _name_row(row: int) -> str:
    return f"row {row}"


def _check_target(
    objective: DistillationObjective, logits: Tensor, target: Targets, where: Where
) -> None:
    if isinstance(target, DenseTargets):
        if target.logits.shape != logits.shape:
            raise _shape_error(tuple(target.logits.shape), tuple(logits.shape))
        _check_finite(target.logits.sum(-1), "logits", where)  # inf and nan survive a sum
        return
    if target.ids.shape[0] != logits.shape[0]:
        raise _shape_error(tuple(target.ids.shape), tuple(logits.shape))
    _check_ids(logits, target)
    if target.temperature != objective.temperature:
        raise RecipeError(
            f"targets captured at temperature {target.temperature} cannot be used at "
            f"{objective.temperature}",
            code="distill.temperature",
            where="method.temperature",
            expected="one temperature for capture and training: a tail cannot be tempered again",
            next="capture again, or use targets.mode: dense or live",
        )
    _check_finite(target.logprobs.sum(-1), "log-probabilities", where)
    if isinstance(target, SampledTargets):
        _check_finite(target.weights.sum(-1), "weights", where)
        if not objective.takes_samples:
            raise sampled_targets_error(objective)
    elif bool(target.tail.isnan().any()):
        _check_finite(target.tail.nan_to_num(neginf=0.0, nan=math.nan), "tail", where)


def _check_ids(logits: Tensor, target: TopKTargets | SampledTargets) -> None:
    width, vocabulary = target.ids.shape[1], logits.shape[1]
    if isinstance(target, TopKTargets) and width > vocabulary:
        raise ShapeError(
            f"k = {width} is more than the {vocabulary} tokens of the vocabulary",
            code="distill.shape",
            where="targets.k",
            expected=f"at most {vocabulary}",
            next="lower targets.k",
        )
    if target.ids.numel() and int(target.ids.max()) >= vocabulary:
        raise ShapeError(
            f"targets name token {int(target.ids.max())} of a vocabulary of {vocabulary}",
            code="distill.shape",
            expected="ids of the student's own vocabulary",
            next="capture the teacher again for this student",
        )


def _check_finite(sums: Tensor, what: str, where: Where) -> None:
    fine = sums.isfinite()
    if not bool(fine.all()):
        row = int((~fine).nonzero()[0])
        raise DataError(
            f"the teacher's {what} at {where(row)} are not finite",
            code="distill.teacher-not-finite",
            where=where(row),
            expected="finite numbers",
            next="set train.precision to float32, or check the teacher's weights",
        )


def _shape_error(target: tuple[int, ...], logits: tuple[int, ...]) -> ShapeError:
    return ShapeError(
        f"targets of shape {target} do not fit student logits of shape {logits}",
        code="distill.shape",
        expected="the same positions and the same vocabulary",
        next="capture the teacher again for this student",
    )


_MAX_POLICY_LOG_RATIO = 20.0


def evaluate_policy_objective(
    objective: PolicyGradientObjective,
    logits: Tensor,
    target: Targets | None,
    labels: Tensor,
    rollout: Tensor | None,
    drawn: SamplingInfo | None,
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
        raise missing_rollouts_error(objective)
    log_q = torch.log_softmax(logits, -1)
    own = log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # (n,)
    weight = torch.where(rollout, drawn.importance.to(own.dtype), 0.0) * objective.kd_weight
    surrogate, slope, is_clipped = _clip_surrogate(own, drawn, objective.clip)
    loss, slope = weight * surrogate, weight * slope
    parts = {
        # what the draws say of KL(q || p), and how far q has moved since they were made
        "sampled_reverse_kl": -_sum_float64(
            torch.where(rollout, drawn.importance * drawn.gains, 0.0)
        ),
        "likelihood_gap": _sum_float64(torch.where(rollout, (own - drawn.old).abs(), 0.0)),
        "clipped": _sum_float64(is_clipped & rollout),
    }
    nats = torch.where(rollout, 0.0, -own)
    parts["cross_entropy"] = _sum_float64(nats)
    loss = loss + objective.ce_weight * nats
    slope = slope - objective.ce_weight * (~rollout).to(slope.dtype)
    gradient = log_q.exp().mul_(-slope.unsqueeze(-1))
    if objective.needs_target and target is not None:
        whole = evaluate_objective(objective, logits, target, rollout=rollout, where=where)
        parts["divergence"] = _sum_float64(torch.where(rollout, whole.loss, 0.0))
        loss = loss + weight * whole.loss
        gradient += whole.gradient.mul_(weight.unsqueeze(-1))
    gradient.scatter_add_(-1, labels.unsqueeze(-1), slope.unsqueeze(-1))
    return loss, gradient, parts


def _clip_surrogate(
    own: Tensor, drawn: SamplingInfo, clip: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -min(r A, clip(r) A), its slope by the log-probability, and where it was clipped."""
    credit = drawn.credit.to(own.dtype)
    ratio = (own - drawn.old.to(own.dtype)).clamp(max=_MAX_POLICY_LOG_RATIO).exp()
    if clip is None:
        return -ratio * credit, -ratio * credit, torch.zeros_like(own, dtype=torch.bool)
    bounded = ratio.clamp(1 - clip, 1 + clip)
    is_clipped = bounded * credit < ratio * credit
    value = -torch.where(is_clipped, bounded, ratio) * credit
    return value, torch.where(is_clipped, 0.0, -ratio * credit), is_clipped


def _sum_float64(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def compute_relation_kl(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """Return KL(teacher || student) of the softmaxes of scores over visible positions, (A, n).

    Args:
        student: Scores, (A, n, T).
        teacher: Scores, (A, n, T).
        visible: (n, T), at least one True a row.
    """
    least = torch.finfo(student.dtype).min / 2  # finite: 0 * inf would be no number
    log_q = torch.log_softmax(student.masked_fill(~visible, least), -1)
    log_p = torch.log_softmax(teacher.masked_fill(~visible, least), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def compute_relation_scores(vectors: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Return scaled dot products of some positions' vectors with all, split into heads, (A, n, T).

    Args:
        vectors: (H, T, d); the H heads are concatenated before they are split again.
        rows: (n,), positions.
        heads: A, a divisor of H * d.
    """
    joined = vectors.transpose(0, 1).flatten(1)  # (T, H * d)
    split = joined.reshape(len(joined), heads, -1).transpose(0, 1)  # (A, T, H * d / A)
    scores: Tensor = split[:, rows] @ split.transpose(1, 2) * split.shape[-1] ** -0.5
    return scores


def missing_rollouts_error(objective: DistillationObjective) -> RecipeError:
    """Return the error for a method that learns from rollouts where there are none."""
    return RecipeError(
        f"'{objective.method_name()}' needs to know which positions the student wrote itself",
        code="distill.rollouts",
        where="method",
        expected="rollouts in the recipe",
        next="add 'rollouts: {name: on_policy, beside_records: true}' and 'targets: {mode: live}'",
    )
