"""Base classes of the interchangeable methods of distillation, and their registries.

``DistillationObjective`` (criterion, loss): a divergence, one term per token, evaluated for every
form of target. Temperature, the T² factor and the mix with cross-entropy are common to all.

``PolicyGradientObjective``: assigns a credit to each token sampled by the student and raises the
log-probability of tokens with positive credit; credits are computed once per block of steps.

``CrossTokenizerLoss``: compares either chunks that cover the same bytes, by their log-probability,
or rows, by the next-token distributions where both texts are at the same byte.

``FeatureLoss``: compares hidden states at loss positions (``HiddenStateLoss``) or one record's
queries, keys and values (``RelationLoss``). Layers count from 1; hidden state 0 is the embeddings,
and that of the last layer is taken after the final norm.

``RolloutPolicy``: decides once per step, equally on all ranks, whether the step trains on fresh
text, stored text or records, and samples each token of fresh text.

``CompletionScorer``: rejects or scores completions, given all completions of a prompt at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.distill.types import (
    AttentionHeads,
    CompletionScore,
    DecodeStep,
    LayerPairing,
    SampledTokens,
    StepState,
    TextSource,
)
from stillroom.records import Prompt, Record
from stillroom.registry import Method, Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from stillroom.distill.cross_tokenizer.spans import TokenMap
    from stillroom.distill.data.tokenized import SamplingInfo
    from stillroom.distill.losses.divergence import DistributionPair
    from stillroom.distill.losses.targets import Targets
    from stillroom.models import TextModel

    Numbers = npt.NDArray[np.float64]

__all__ = [
    "APART_ROLLOUT_POLICIES",
    "COMPLETION_SCORERS",
    "CROSS_TOKENIZER_LOSSES",
    "FEATURE_LOSSES",
    "METHODS",
    "RECORD_METHODS",
    "ROLLOUT_POLICIES",
    "ChunkLoss",
    "CompletionScorer",
    "CrossTokenizerLoss",
    "DistillationObjective",
    "FeatureLoss",
    "HiddenStateLoss",
    "PolicyGradientObjective",
    "RelationLoss",
    "RolloutPolicy",
    "VocabularyLoss",
    "get_reference_answer",
]


class DistillationObjective(Method):
    """A divergence between teacher p and student q, with temperature and cross-entropy mix.

    The loss of a position is ``kd_weight`` times the divergence plus ``ce_weight`` times the
    cross-entropy of the record's token; the weights are not normalized. ``temperature`` is that of
    the loss only; the sampling temperature belongs to the rollout policy. ``t2_scale`` is applied
    in ``losses.divergence.compute_kd_loss``.

    Class attributes:
        needs_rollouts: Whether the student's text must be marked in batches.
        needs_scores: Whether the teacher's log-probabilities of those tokens are required.
        needs_target: Whether the teacher's distributions are required.
        detaches_weights: Whether weights that depend on q are constant in the gradient.
    """

    needs_rollouts: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    needs_target: ClassVar[bool] = True
    detaches_weights: ClassVar[bool] = False

    temperature: float = Field(
        default=1.0,
        gt=0,
        description="softmax temperature of both sides, in the divergence only",
    )
    t2_scale: bool = Field(
        default=True,
        description="multiply the divergence by temperature squared, as in Hinton et al.",
    )
    kd_weight: float = Field(default=1.0, ge=0, description="weight of the divergence")
    ce_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the cross-entropy with the records' tokens, at temperature 1",
    )

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's distributions are needed; not with a divergence of weight 0."""
        return self.needs_target and self.kd_weight > 0

    @property
    def takes_samples(self) -> bool:
        """Whether sampled tokens suffice, by default if the method has a ``control_variate``."""
        return type(self).control_variate is not DistillationObjective.control_variate

    @abstractmethod
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        """Return each outcome's term of the divergence, and its derivative by the student's log q.

        Args:
            pair: Student and teacher distributions; read only.

        Returns:
            Terms (n, V) in nats, whose row sums are the divergence, and their slopes (n, V), new
            tensors: the derivative of a row's sum by each ``log q``. A multiple of q may be added
            to a row of slopes, because it cancels in the softmax; it is chosen so that equal
            distributions have slope 0.
        """

    def control_variate(self, pair: DistributionPair) -> tuple[Tensor | float, Tensor | float]:
        """Return the limits of terms and slopes, in units of q, as p / q goes to 0.

        A control variate, required of methods with ``takes_samples``: terms minus this multiple of
        q are bounded by a multiple of p, so that their sum has an unbiased estimate of finite
        variance.

        Args:
            pair: Student and teacher at the sampled tokens.

        Raises:
            RecipeError: If the method does not support sampled targets.
        """
        from stillroom.distill.losses.divergence import sampled_targets_error

        raise sampled_targets_error(self)

    def divergence(
        self, student_logits: Tensor, target: Targets, *, rollout: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the divergence, including temperature and T², for any form of target.

        Args:
            student_logits: (n, V), float32 or float64.
            target: Teacher's targets at the same n positions.
            rollout: (n,), True for positions in text generated by the student.

        Returns:
            Loss (n,) in nats and its gradient (n, V) by ``student_logits``.

        Raises:
            DataError: If a teacher's value is not finite; the row is named.
            RecipeError: If the method does not support this form, or the target was captured at
                another temperature.
            ShapeError: If the target does not fit the logits.
        """
        from stillroom.distill.losses.divergence import compute_kd_loss

        loss, gradient, _ = compute_kd_loss(self, student_logits, target, rollout=rollout)
        return loss, gradient

    def score(
        self,
        student_logits: Tensor,
        target: Targets | None,
        labels: Tensor,
        *,
        rollout: Tensor | None = None,
        where: Callable[[int], str] | None = None,
        sampling: SamplingInfo | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Compute the weighted loss (n,), its gradient (n, V), and the sums of its parts.

        Args:
            student_logits: (n, V).
            target: Teacher's targets; None only if ``kd_weight`` is 0.
            labels: Next tokens of the records, (n,), int64.
            rollout: (n,), True for positions in text generated by the student.
            where: Returns the name of a row for an error.
            sampling: Sampling statistics of the generated tokens; ignored by divergences.

        Raises:
            DataError: If a teacher's value is not finite; the row is named.
            RecipeError: As in ``divergence``.
            ShapeError: If the target does not fit the logits.
        """
        from stillroom.distill.losses.divergence import compute_cross_entropy, compute_kd_loss

        if target is None and self.kd_weight:
            raise ValueError("a divergence needs a target")
        if target is None:
            return compute_cross_entropy(self.ce_weight, student_logits, labels)
        return compute_kd_loss(self, student_logits, target, labels, rollout=rollout, where=where)


METHODS = Registry("stillroom.distill.methods", DistillationObjective)
RECORD_METHODS = METHODS.subset(
    lambda method: not method.needs_rollouts,
    "learns from text of the student: use kind distill.on_policy",
)


class PolicyGradientObjective(DistillationObjective):
    """Policy gradient on tokens sampled by the student; cross-entropy on all others.

    The loss of a sampled token is ``kd_weight`` times ``-w min(r A, clip(r) A)``: A its credit, w
    the student's probability divided by the sampling probability, both at sampling time, and r the
    student's probability now divided by that at sampling time. Tokens of records and of the
    teacher's text have only ``ce_weight`` times their cross-entropy.
    """

    needs_rollouts: ClassVar[bool] = True
    needs_scores: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False

    @override
    @classmethod
    def recipe_sets(cls) -> dict[str, Any]:
        return {"rollout_policy": {"name": "on_policy", "student_share": 1.0}}

    clip: float | None = Field(
        default=0.2,
        gt=0,
        description="clip range of the probability ratio around 1; null does not clip",
    )

    @model_validator(mode="after")
    def _at_temperature_one(self) -> PolicyGradientObjective:
        if self.temperature != 1:
            raise ValueError(
                "samples are compared at temperature 1; rollout_policy.temperature is for sampling"
            )
        return self

    @abstractmethod
    def credit(self, gains: Sequence[Numbers]) -> list[Numbers]:
        """Return the credit of each token of each rollout of a block.

        Args:
            gains: For each rollout, (N,): the teacher's log-probability of each token minus the
                student's at sampling time; 0 for tokens not sampled by the student.
        """

    @override
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        """Return the terms of the reverse KL, whose gradient is estimated from samples."""
        from stillroom.distill.losses.divergence import reverse_kl_terms

        return reverse_kl_terms(pair)

    @override
    def score(
        self,
        student_logits: Tensor,
        target: Targets | None,
        labels: Tensor,
        *,
        rollout: Tensor | None = None,
        where: Callable[[int], str] | None = None,
        sampling: SamplingInfo | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Compute loss (n,), gradient (n, V) and parts; see ``DistillationObjective.score``.

        Raises:
            DataError: If a teacher's value is not finite; the row is named.
            RecipeError: If the batch has no sampling statistics.
        """
        from stillroom.distill.losses.divergence import compute_policy_gradient_loss

        return compute_policy_gradient_loss(
            self, student_logits, target, labels, rollout, sampling, where
        )


class CrossTokenizerLoss(Method):
    """A loss between teacher and student with different tokenizers, with a cross-entropy mix.

    The step's loss is ``kd_weight`` times the sum over chunks (or rows) plus ``ce_weight`` times
    the cross-entropy of the student's labels, both divided by the number of the student's loss
    positions.
    """

    compares: ClassVar[Literal["chunks", "rows"]]

    kd_weight: float = Field(default=1.0, ge=0, description="weight of the distillation loss")
    ce_weight: float = Field(
        default=0.0, ge=0, description="weight of the cross-entropy with the student's labels"
    )
    min_coverage: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="minimum share of the records' student tokens compared with the teacher; "
        "below it training is refused",
    )


class ChunkLoss(CrossTokenizerLoss):
    """Loss on the log-probability of each chunk's bytes; independent of the teacher's vocabulary.

    Only the teacher's log-probabilities of its labels are needed, which any server can provide that
    returns prompt log-probabilities.
    """

    compares: ClassVar[Literal["chunks", "rows"]] = "chunks"

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Compute the loss of each chunk, its derivative, and sums to log.

        Args:
            log_q: Student's log-probability of each chunk, (C,), at most 0.
            log_p: Teacher's log-probability of each chunk, (C,), at most 0.

        Returns:
            Loss (C,), its derivative by ``log_q`` (C,), and named sums over the chunks.
        """


class VocabularyLoss(CrossTokenizerLoss):
    """Loss on two next-token distributions over different vocabularies at the same byte."""

    compares: ClassVar[Literal["chunks", "rows"]] = "rows"
    needs_one_to_one: ClassVar[bool] = True

    def pairs_by_index(self) -> bool:
        """Whether rows are paired by their index in the record instead of by bytes."""
        return False

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        """Compute the loss of each row and its gradient by the student's logits.

        Args:
            log_q: Student's log-probabilities, (n, V of the student); may be overwritten.
            log_p: Teacher's log-probabilities, (n, V of the teacher); may be overwritten.
            tokens: Map of tokens with equal bytes.

        Returns:
            Loss (n,) and gradient (n, V of the student) by the logits whose softmax is q.
        """


CROSS_TOKENIZER_LOSSES: Registry[CrossTokenizerLoss] = Registry(
    "stillroom.distill.cross_tokenizer_losses", CrossTokenizerLoss
)


class FeatureLoss(Method):
    """A loss on internal states of both models, added to the loss on their logits.

    Every loss position counts once: the mean over the paired layers is summed over positions and
    divided by their number in the whole optimizer step, as the loss on logits is.
    ``trainers.feature_set`` pairs the layers (layer mapping).
    """

    reads: ClassVar[Literal["states", "attention", "projections"]]
    lowest_layer: ClassVar[int] = 1

    weight: float = Field(default=1.0, gt=0, description="weight of the loss")
    layers: LayerPairing = Field(
        default="uniform",
        description="uniform: every student layer with the teacher layer at the same relative "
        "depth; last: the last layers; or pairs [student, teacher], layers counted from 1",
    )

    @model_validator(mode="after")
    def _pairs_are_layers(self) -> FeatureLoss:
        if not isinstance(self.layers, str):
            if not self.layers or min(map(min, self.layers)) < self.lowest_layer:
                raise ValueError(f"'layers' must be pairs of numbers from {self.lowest_layer}")
            if len(set(self.layers)) < len(self.layers):
                raise ValueError("'layers' must not repeat a pair")
        return self


class HiddenStateLoss(FeatureLoss):
    """Comparison of hidden states, position by position."""

    reads: ClassVar[Literal["states", "attention", "projections"]] = "states"
    lowest_layer: ClassVar[int] = 0

    @abstractmethod
    def make_projector(self, student_width: int, teacher_width: int, seed: int) -> nn.Module | None:
        """Return the projector from the student's to the teacher's width, or None.

        Raises:
            ShapeError: If there is no projector and the widths differ.
        """

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of each position, (N,).

        Args:
            student: Student's states after the projector, (N, H of the teacher).
            teacher: Teacher's states, (N, H of the teacher).
        """


class RelationLoss(FeatureLoss):
    """Comparison of relations between the positions of one record."""

    @abstractmethod
    def check(self, student: AttentionHeads, teacher: AttentionHeads) -> None:
        """Reject heads that cannot be compared.

        Raises:
            ShapeError: If their numbers or widths are incompatible.
        """

    @abstractmethod
    def compare(
        self, student: AttentionHeads, teacher: AttentionHeads, rows: Tensor, visible: Tensor
    ) -> Tensor:
        """Compute the loss of each position, (n,).

        Args:
            student: Heads of the student, float32 or float64.
            teacher: Heads of the teacher, float32 or float64.
            rows: The record's n loss positions, ascending.
            visible: (n, T), True if the position attends to the key.
        """


FEATURE_LOSSES: Registry[FeatureLoss] = Registry("stillroom.distill.feature_losses", FeatureLoss)


class RolloutPolicy(Method):
    """Source of a step's text, and its sampling.

    Text is sampled with these settings, never with those of a model's generation_config. A setting
    ``student_share`` is the share of steps on fresh text of the student; the others use records.
    ``draws_from_student`` is False if tokens counted as the student's are not sampled from its own
    distribution, which rules out policy gradients. ``adapts_to_loss`` is True if the policy adapts
    to the held-out loss, and ``generates_with_teacher`` if the teacher helps write every rollout.
    """

    draws_from_student: ClassVar[bool] = True
    adapts_to_loss: ClassVar[bool] = False
    generates_with_teacher: ClassVar[bool] = False

    temperature: float = Field(default=1.0, gt=0, description="sampling temperature of rollouts")
    top_k: int = Field(default=0, ge=0, description="sample from the k most likely tokens; 0 all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="nucleus sampling: cumulative probability; 1 all"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="maximum tokens of a rollout")
    opening_tokens: int = Field(
        default=16, ge=1, description="number of first tokens of a plain text used as a prompt"
    )
    rows: int = Field(
        default=8,
        ge=1,
        le=512,
        description="generation batch size; another number may change the last bits",
    )
    reuse: int = Field(
        default=1, ge=1, description="consecutive optimizer steps that use the same rollouts"
    )
    warm_up: float = Field(
        default=0.0, ge=0, lt=1, description="initial share of the run that uses only records"
    )
    beside_records: bool = Field(
        default=False,
        description="also train on the prompts' records in steps with fresh or stored text",
    )

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        if self.generated_share == 0:
            raise ValueError("no step would use generated text: distill on records instead")
        return self

    @property
    def start_level(self) -> float:
        """Initial level of an adaptive policy."""
        return 0.0

    @property
    def validation_count(self) -> int:
        """Number of held-out records used for validation."""
        return 0

    @property
    def uses_other_text(self) -> bool:
        """Whether some steps use only text not generated by the student."""
        return self.warm_up > 0 or float(getattr(self, "student_share", 0.0)) < 1

    @property
    def uses_records(self) -> bool:
        """Whether any step may use the records, or adapts to the loss on them."""
        return self.uses_other_text or self.beside_records or self.adapts_to_loss

    @property
    def may_need_teacher(self) -> bool:
        """Whether the teacher generates text, or is queried during generation."""
        return False

    @property
    def generated_share(self) -> float:
        """Maximum share of the steps that start with fresh text."""
        return (1 - self.warm_up) * float(getattr(self, "student_share", 1.0))

    @property
    def capacity(self) -> int:
        """Capacity of the replay buffer, in rollouts."""
        return 0

    def decide(self, moment: StepState) -> TextSource:
        """Return the source of this step's text; by default the student for its share of steps."""
        return "student" if moment.draw < getattr(self, "student_share", 1.0) else "records"

    def needs_teacher_at(self, position: int, share: float) -> bool:
        """Whether ``choose`` needs the teacher's distribution at this position of a rollout."""
        return False

    def choose(self, turn: DecodeStep) -> SampledTokens:
        """Choose the next token of each text; by default the student's sample."""
        import torch

        tokens = turn.draw(turn.student, 0)
        chances = turn.student.gather(-1, tokens[:, None]).squeeze(-1)
        return SampledTokens(tokens, chances, torch.ones_like(tokens, dtype=torch.bool))

    def validates(self, step: int, steps: int) -> bool:
        """Whether the held-out loss is measured before this step."""
        return False

    def adapt(self, level: float, before: float | None, loss: float) -> float:
        """Return the new level, given the current and the previous held-out loss."""
        return level


ROLLOUT_POLICIES: Registry[RolloutPolicy] = Registry(
    "stillroom.distill.rollout_policies", RolloutPolicy
)
APART_ROLLOUT_POLICIES = ROLLOUT_POLICIES.subset(
    lambda policy: not policy.generates_with_teacher,
    "also generates with the teacher, token by token, and a teacher behind an endpoint or with "
    "another tokenizer only scores finished text; kind distill.on_policy has a teacher that can",
)


class CompletionScorer(Method):
    """A judge of completions; its fields are its settings."""

    needs_answer: ClassVar[bool] = False
    """Whether the record must have a reference answer."""

    needs_scores: ClassVar[bool] = False
    """Whether the model must score given text, which endpoints cannot."""

    @abstractmethod
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        """Judge every completion of one prompt, in order.

        Args:
            record: Source of the prompt; its last assistant message is the reference answer.
            prompt: Prompt of the completions.
            texts: Completions, none of them empty or truncated.
            model: Model that generated them.

        Raises:
            BackendError: If the model is queried and fails.
        """


def get_reference_answer(record: Record) -> str:
    """Return the reference answer: ``fields.answer``, or else the last assistant message."""
    answer = record.fields.get("answer")
    if isinstance(answer, str) and answer.strip():
        return answer
    last = record.messages[-1] if record.messages else None
    return last.content if last is not None and last.role == "assistant" else ""


COMPLETION_SCORERS: Registry[CompletionScorer] = Registry(
    "stillroom.distill.completion_scorers", CompletionScorer
)
