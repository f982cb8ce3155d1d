"""Base classes of the interchangeable methods of distillation, and their registries.

An objective states its divergence once, as one term a token; every form of target is brought to
that. Temperature, the T² factor and the mix with cross-entropy are the same for all.

A policy gradient credits each token that the student sampled (``credit``) and raises the
log-probability of those with a positive credit; credits are computed once a block of steps.

A cross-tokenizer loss compares either chunks that cover the same bytes, by the log-probability of
spelling one, or rows, by the next-token distributions where both texts stand at the same byte.

A feature loss compares hidden states at the positions that bear loss (``HiddenStateLoss``) or one
record's queries, keys and values (``RelationLoss``). Layers count from 1; hidden state 0 is the
embeddings, that of the last layer is taken after the final norm.

A rollout policy decides once a step, from numbers that are the same on all ranks, whether the step
learns from fresh text, from stored text or from the records, and samples each token of fresh text.

A completion scorer rejects or scores a completion and sees all completions of a prompt at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

__all__ = [
    "COMPLETION_SCORERS",
    "CROSS_TOKENIZER_LOSSES",
    "FEATURE_LOSSES",
    "METHODS",
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
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        """Return each outcome's part of the divergence, and its slope by the student's log q.

        Args:
            pair: Student and teacher; its tensors are read only.

        Returns:
            Terms (n, V) in nats, whose row sums are the divergence, and their slopes (n, V), new
            tensors: the derivative of a row's sum by each ``log q``. A multiple of q may be added
            to a row of slopes, as it falls out in the softmax; choose it so that equal sides have
            slope 0.
        """

    def vanishing(self, pair: DistributionPair) -> tuple[Tensor | float, Tensor | float]:
        """Return what terms and slopes are, in units of q, as p goes to 0 beside q.

        Only for methods with ``takes_samples``: their terms minus this much of q stay below a
        multiple of p, so that their sum has an unbiased estimate of finite variance.

        Args:
            pair: Student and teacher at the drawn tokens.

        Raises:
            RecipeError: If the method does not take samples.
        """
        from stillroom.distill.losses.divergence import sampled_targets_error

        raise sampled_targets_error(self)

    def divergence(
        self, student_logits: Tensor, target: Targets, *, rollout: Tensor | None = None
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
        from stillroom.distill.losses.divergence import evaluate_objective

        scored = evaluate_objective(self, student_logits, target, rollout=rollout)
        return scored.loss, scored.gradient

    def score(
        self,
        student_logits: Tensor,
        target: Targets | None,
        labels: Tensor,
        *,
        rollout: Tensor | None = None,
        where: Callable[[int], str] | None = None,
        drawn: SamplingInfo | None = None,
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
        from stillroom.distill.losses.divergence import evaluate_cross_entropy, evaluate_objective

        if target is None and self.kd_weight:
            raise ValueError("a divergence needs a target")
        if target is None:
            scored = evaluate_cross_entropy(self.ce_weight, student_logits, labels)
            return scored.loss, scored.gradient, scored.parts
        scored = evaluate_objective(
            self, student_logits, target, labels, rollout=rollout, where=where
        )
        return scored.loss, scored.gradient, scored.parts


METHODS = Registry("stillroom.distill.methods", DistillationObjective)


if TYPE_CHECKING:
    Numbers = npt.NDArray[np.float64]


class PolicyGradientObjective(DistillationObjective):
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
    def _at_temperature_one(self) -> PolicyGradientObjective:
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
    def terms(self, pair: DistributionPair) -> tuple[Tensor, Tensor]:
        """Return the terms of the reverse KL, whose gradient the draws estimate."""
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
        drawn: SamplingInfo | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return loss (n,), gradient (n, V) and parts; see ``DistillationObjective.score``.

        Raises:
            DataError: If the teacher's numbers are not finite; the row is named.
            RecipeError: If the batch does not say how its tokens were drawn.
        """
        from stillroom.distill.losses.divergence import evaluate_policy_objective

        return evaluate_policy_objective(
            self, student_logits, target, labels, rollout, drawn, where
        )


class CrossTokenizerLoss(Method):
    """A loss between teacher and student whose tokenizers differ, with a cross-entropy mix.

    The step's loss is ``kd_weight`` times the sum over chunks (or rows) plus ``ce_weight`` times
    the cross-entropy of the student's own tokens, both divided by one number: the student's
    positions that bear loss.
    """

    compares: ClassVar[Literal["chunks", "rows"]]

    kd_weight: float = Field(default=1.0, ge=0, description="weight of the loss to the teacher")
    ce_weight: float = Field(
        default=0.0, ge=0, description="weight of the cross-entropy with the student's own tokens"
    )
    least_coverage: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="least share of the records' student tokens that is compared with the teacher; "
        "below it nothing is trained",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that the student must be a checkpoint with a tokenizer of its own."""
        return {"student": "path/to/student"}


class ChunkLoss(CrossTokenizerLoss):
    """Compares how likely both sides find the bytes of each chunk; needs no teacher's vocabulary.

    The teacher's log-probabilities of its own tokens suffice, so that any server that returns them
    for a prompt can teach.
    """

    compares: ClassVar[Literal["chunks", "rows"]] = "chunks"

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return the loss of each chunk, its slope, and sums to be logged.

        Args:
            log_q: The student's log-probability of each chunk, (C,), at most 0.
            log_p: The teacher's, likewise.

        Returns:
            Loss (C,), its derivative by ``log_q`` (C,), and named sums over the chunks.
        """


class VocabularyLoss(CrossTokenizerLoss):
    """Compares two next-token distributions over different vocabularies at the same byte."""

    compares: ClassVar[Literal["chunks", "rows"]] = "rows"
    needs_one_to_one: ClassVar[bool] = True

    def pairs_by_index(self) -> bool:
        """Whether rows are paired by their number in the record instead of by bytes."""
        return False

    @abstractmethod
    def compare(self, log_q: Tensor, log_p: Tensor, tokens: TokenMap) -> tuple[Tensor, Tensor]:
        """Return the loss of each row and its gradient by the student's logits.

        Args:
            log_q: The student's log-probabilities, (n, V of the student); may be overwritten.
            log_p: The teacher's, (n, V of the teacher); may be overwritten.
            tokens: Which tokens of both have the same bytes.

        Returns:
            Loss (n,) and gradient (n, V of the student) by the logits whose softmax is q.
        """


CROSS_TOKENIZER_LOSSES: Registry[CrossTokenizerLoss] = Registry(
    "stillroom.distill.cross_tokenizer_losses", CrossTokenizerLoss
)


class FeatureLoss(Method):
    """A loss on what happens inside both models, added to the loss on their logits.

    Every position that bears loss counts once: the mean over the paired layers is summed over these
    positions and divided by their number in the whole optimizer step, as the loss on logits is.
    """

    reads: ClassVar[Literal["states", "attention", "projections"]]
    lowest_layer: ClassVar[int] = 1

    weight: float = Field(default=1.0, ge=0, description="what the loss is multiplied by")
    layers: LayerPairing = Field(
        default="uniform",
        description="uniform: every student layer with the teacher's at the same share of the "
        "depth; last: the last ones; or pairs [student, teacher], layers counted from 1",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that the teacher must run in every step."""
        return {"targets.mode": "live"}

    @model_validator(mode="after")
    def _pairs_are_layers(self) -> FeatureLoss:
        if not isinstance(self.layers, str):
            if not self.layers or min(map(min, self.layers)) < self.lowest_layer:
                raise ValueError(f"'layers' wants pairs of numbers from {self.lowest_layer}")
            if len(set(self.layers)) < len(self.layers):
                raise ValueError("'layers' wants each pair once")
        return self


class HiddenStateLoss(FeatureLoss):
    """Compares hidden states, position by position."""

    reads: ClassVar[Literal["states", "attention", "projections"]] = "states"
    lowest_layer: ClassVar[int] = 0

    @abstractmethod
    def make_projector(self, student_width: int, teacher_width: int, seed: int) -> nn.Module | None:
        """Return what turns the student's states into the teacher's width; None if nothing does.

        Raises:
            ShapeError: If nothing shall and the widths differ.
        """

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each position, (N,).

        Args:
            student: The student's states after the projector, (N, H of the teacher).
            teacher: The teacher's, likewise.
        """


class RelationLoss(FeatureLoss):
    """Compares how the positions of one record relate to each other."""

    @abstractmethod
    def check(self, student: AttentionHeads, teacher: AttentionHeads) -> None:
        """Refuse heads that cannot be compared.

        Raises:
            ShapeError: If their number or width does not allow it.
        """

    @abstractmethod
    def compare(
        self, student: AttentionHeads, teacher: AttentionHeads, rows: Tensor, visible: Tensor
    ) -> Tensor:
        """Return the loss of each position, (n,).

        Args:
            student: Of the student, float32 or float64.
            teacher: Of the teacher, likewise.
            rows: The n positions of the record that bear loss, rising.
            visible: (n, T), True where a position may look.
        """


FEATURE_LOSSES: Registry[FeatureLoss] = Registry("stillroom.distill.feature_losses", FeatureLoss)


class RolloutPolicy(Method):
    """Where a step's text comes from, and how it is drawn.

    Text is drawn with these settings and never with those of a model's generation_config: another
    distribution than the model's own would make the loss one of text that the student would not
    write. ``draws_from_student`` is False where tokens that count as the student's are not drawn
    from its own distribution, so that no policy gradient can be taken on them.
    """

    draws_from_student: ClassVar[bool] = True
    learns_of_loss: ClassVar[bool] = False

    temperature: float = Field(default=1.0, gt=0, description="of the draws; the loss has its own")
    top_k: int = Field(default=0, ge=0, description="draw from so many likeliest tokens; 0 all")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens of this mass; 1 all"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="most tokens of a rollout")
    opening_tokens: int = Field(
        default=16,
        ge=1,
        description="a record that is plain text prompts with so many of its first tokens",
    )
    rows: int = Field(
        default=8,
        ge=1,
        le=512,
        description="texts written side by side; another number may change last bits",
    )
    reuse: int = Field(
        default=1, ge=1, description="optimizer steps in a row that learn from the same rollouts"
    )
    warm_up: float = Field(
        default=0.0, ge=0, lt=1, description="share of the run that learns from records alone first"
    )
    beside_records: bool = Field(
        default=False,
        description="steps with fresh or kept text learn from the records of the prompts too",
    )

    @classmethod
    @override
    def recipe_sets(cls) -> dict[str, Any]:
        """Return that the teacher must run in every step."""
        return {"targets.mode": "live"}

    @property
    def start_level(self) -> float:
        """What an adaptive policy begins with."""
        return 0.0

    @property
    def validated(self) -> int:
        """How many held-out records a policy validates on."""
        return 0

    @property
    def learns_from_others(self) -> bool:
        """Whether some steps learn only from text that the student did not write."""
        return True

    @property
    def learns_from_records(self) -> bool:
        """Whether any step may learn from the records, or is judged by them."""
        return self.learns_from_others or self.beside_records or self.learns_of_loss

    @property
    def may_need_teacher(self) -> bool:
        """Whether the teacher writes, or is asked while the student does."""
        return False

    @property
    def written_share(self) -> float:
        """Share of the steps that begin with fresh text, at most."""
        return (1 - self.warm_up) * float(getattr(self, "student_share", 1.0))

    @property
    def capacity(self) -> int:
        """How many rollouts are kept to be learned from again."""
        return 0

    def decide(self, moment: StepState) -> TextSource:
        """Return where this step's text comes from."""
        return "student"

    def wants_teacher(self, place: int, share: float) -> bool:
        """Whether ``choose`` needs the teacher's distribution at this place of a rollout."""
        return False

    def choose(self, turn: DecodeStep) -> SampledTokens:
        """Choose the next token of each text; here the student writes alone."""
        import torch

        tokens = turn.draw(turn.student, 0)
        chances = turn.student.gather(-1, tokens[:, None]).squeeze(-1)
        return SampledTokens(tokens, chances, torch.ones_like(tokens, dtype=torch.bool))

    def validates(self, step: int, steps: int) -> bool:
        """Whether the loss on held-out records is measured before this step."""
        return False

    def adapt(self, level: float, before: float | None, loss: float) -> float:
        """Return the new level, given the loss on held-out records, and the one before."""
        return level


ROLLOUT_POLICIES: Registry[RolloutPolicy] = Registry(
    "stillroom.distill.rollout_policies", RolloutPolicy
)


class CompletionScorer(Method):
    """Judges completions; its fields are its settings."""

    needs_answer: ClassVar[bool] = False
    """Whether the record must carry an answer of its own to compare with."""

    needs_scores: ClassVar[bool] = False
    """Whether the writer must tell the log-probability of a given text: no endpoint does."""

    @abstractmethod
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[CompletionScore]:
        """Judge every completion of one prompt, in order.

        Args:
            record: What the prompt was made of; its last assistant message is its own answer.
            prompt: What the writer was given.
            texts: The completions, none of them empty or cut off.
            model: The writer.

        Raises:
            BackendError: If the writer is asked and fails.
        """


def get_reference_answer(record: Record) -> str:
    """Return the record's own answer: ``fields.answer``, or else its last assistant message."""
    answer = record.fields.get("answer")
    if isinstance(answer, str) and answer.strip():
        return answer
    last = record.messages[-1] if record.messages else None
    return last.content if last is not None and last.role == "assistant" else ""


COMPLETION_SCORERS: Registry[CompletionScorer] = Registry(
    "stillroom.distill.completion_scorers", CompletionScorer
)
