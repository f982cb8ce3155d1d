"""Batched generation of rollouts (temperature, top_p) with a KV cache, by the model in training.

A text's random numbers are derived from the recipe's seed, the step and its record, and the tensor
shapes from its own prompt (``BatchedDecoder``), so that neither the other texts of a batch nor the
number of ranks change it: exactly if a row of a matrix product does not depend on the other rows,
as on one CPU thread, and up to the last bits otherwise. Products have the precision of training;
with bfloat16 the weights of layers are cast once per step, not in every call.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.losses.lm_head import LMHead, get_body
from stillroom.distill.on_policy.rollout import OnPolicyPrompt, Rollout
from stillroom.distill.types import DecodeStep, SampledTokens
from stillroom.models.local.generation import BatchedDecoder, round_to_lane
from stillroom.provenance import digest_json
from stillroom.train.precision import autocast_body, matmul_dtype

__all__ = ["GenerationModel", "RolloutGenerator", "compute_sampling_probabilities", "sample_tokens"]


def compute_sampling_probabilities(
    logits: Tensor, temperature: float, top_k: int, top_p: float
) -> Tensor:
    """Return the sampling distribution, (B, V), of logits (B, V).

    Args:
        logits: Logits of the model.
        temperature: Sampling temperature, above 0.
        top_k: Number of most likely tokens kept; 0 keeps all.
        top_p: Cumulative probability of the most likely tokens kept, at least one token.
    """
    scores = logits / temperature if temperature != 1 else logits
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    chances = scores.softmax(-1)
    if top_p < 1:
        ordered, index = chances.sort(dim=-1, descending=True, stable=True)
        preceding = ordered.cumsum(-1) - ordered
        kept_probabilities = ordered.masked_fill(preceding >= top_p, 0.0)
        chances = torch.zeros_like(chances).scatter_(-1, index, kept_probabilities)
        chances /= chances.sum(-1, keepdim=True)
    return chances


def sample_tokens(chances: Tensor, numbers: Tensor) -> Tensor:
    """Sample a token per row, (B,), by inverse transform of uniform numbers.

    Args:
        chances: Probabilities, (B, V), at least 0, not all 0.
        numbers: (B,), in [0, 1).
    """
    sums = chances.double().cumsum(-1)
    thresholds = numbers.to(sums) * sums[:, -1]
    index = torch.searchsorted(sums, thresholds[:, None], right=True).squeeze(-1)
    return index.clamp_(max=chances.shape[-1] - 1)


class GenerationModel:
    """A model prepared for generation: its body in evaluation mode, and its head's weight."""

    def __init__(
        self, model: nn.Module, *, rows: int, precision: str, is_fixed: bool = False
    ) -> None:
        """Initialize the model.

        Args:
            model: Causal language model, including low-rank adapters.
            rows: Number of vocabulary tokens in use; others are never sampled.
            precision: Precision of matrix products, ``float32`` or ``bfloat16``.
            is_fixed: Whether its weights do not change and already have the right precision.
        """
        self.model, self.rows, self.precision, self.is_fixed = model, rows, precision, is_fixed
        self.device = next(model.parameters()).device
        self._cast_copy: nn.Module | None = None
        self._head = LMHead.of(model, rows)
        self._operand: Tensor | None = None

    @contextmanager
    def ready(self) -> Iterator[nn.Module]:
        """Yield the body with the current weights, in evaluation mode and without gradients."""
        body = get_body(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), autocast_body(self.precision, self.device):
                self._head = LMHead.of(self.model, self.rows)
                self._operand = self._head.operand(matmul_dtype(self.precision))
                is_plain = self.is_fixed or self.precision == "float32"
                yield body if is_plain else self._cast_body(body)
        finally:
            self._operand = None
            self.model.train(was_training)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (B, rows) of hidden states (B, H), in full precision; within ``ready``."""
        if self._operand is None:
            raise ValueError("logits must be called within ready()")
        with torch.autocast(self.device.type, enabled=False):
            return self._head.shape_logits(self._head.project(hidden, self._operand))

    def _cast_body(self, body: nn.Module) -> nn.Module:
        """Return a copy with the current weights and linear layers cast to bfloat16."""
        if self._cast_copy is None:
            self._cast_copy = copy.deepcopy(body).requires_grad_(False)
            for module in self._cast_copy.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        else:
            for parameter, current in zip(
                self._cast_copy.parameters(), body.parameters(), strict=True
            ):
                parameter.copy_(current)
        self._cast_copy.eval()
        return self._cast_copy


@dataclass(slots=True)
class _PartialRollout:
    """One rollout during generation."""

    prompt: OnPolicyPrompt
    room: int
    numbers: npt.NDArray[np.float64]  # (room, 2), in [0, 1)
    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    old: list[float] = field(default_factory=list)
    importance: list[float] = field(default_factory=list)
    entropy: float = 0.0
    finished: bool = False

    @property
    def is_done(self) -> bool:
        return self.finished or len(self.ids) >= self.room

    def done(self) -> Rollout:
        return Rollout(
            self.prompt.record_id,
            np.asarray(self.ids, np.int64),
            np.asarray(self.own, np.bool_),
            np.asarray(self.old, np.float32),
            np.asarray(self.importance, np.float32),
            self.finished,
            self.entropy / max(len(self.ids), 1),
        )


class RolloutGenerator:
    """Generator of the rollouts of a step."""

    def __init__(
        self,
        policy: RolloutPolicy,
        student: GenerationModel,
        teacher: GenerationModel | None,
        *,
        ends: frozenset[int],
        max_tokens: int,
        seed: int,
    ) -> None:
        """Initialize the generator.

        Args:
            policy: Policy that chooses each token.
            student: Model in training.
            teacher: Required if the policy, or whole texts, use the teacher.
            ends: Tokens that end a rollout.
            max_tokens: Maximum tokens of prompt and rollout together.
            seed: Seed of the recipe.
        """
        self.policy, self.student, self.teacher = policy, student, teacher
        self.ends, self.max_tokens, self.seed = ends, max_tokens, seed

    def generate(
        self,
        prompts: Sequence[OnPolicyPrompt],
        step: int,
        share: float,
        *,
        by_teacher: bool = False,
    ) -> list[Rollout]:
        """Return a rollout for each prompt, in order.

        Args:
            prompts: Prompts, each shorter than ``max_tokens``.
            step: Optimizer step; with the recipe's seed and the record it seeds sampling.
            share: Completed share of the run.
            by_teacher: Whether the teacher generates the whole text.
        """
        drafts = [self._begin(prompt, step) for prompt in prompts]
        by_width: dict[int, list[_PartialRollout]] = {}
        for draft in drafts:
            by_width.setdefault(round_to_lane(len(draft.prompt.ids)), []).append(draft)
        rows = self.policy.rows
        with self._bodies() as bodies:
            for width, group in sorted(by_width.items()):
                for start in range(0, len(group), rows):
                    batch = _GenerationBatch(
                        self, bodies, group[start : start + rows], width, share
                    )
                    batch.generate(by_teacher=by_teacher)
        return [draft.done() for draft in drafts]

    def _begin(self, prompt: OnPolicyPrompt, step: int) -> _PartialRollout:
        room = min(self.policy.max_new_tokens, self.max_tokens - len(prompt.ids))
        seed = int(digest_json(["rollout", self.seed, step, prompt.record_id])[:15], 16)
        # As many numbers for every text, so that its length limit does not change its samples.
        numbers = np.random.default_rng(seed).random((self.policy.max_new_tokens, 2))
        return _PartialRollout(prompt, room, numbers)

    @contextmanager
    def _bodies(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        with self.student.ready() as student:
            if self.teacher is None:
                yield student, None
                return
            with self.teacher.ready() as teacher:
                yield student, teacher


class _GenerationBatch:
    """Rollouts generated in one batch."""

    def __init__(
        self,
        generator: RolloutGenerator,
        bodies: tuple[nn.Module, nn.Module | None],
        drafts: list[_PartialRollout],
        width: int,
        share: float,
    ) -> None:
        self.generator, self.bodies, self.drafts = generator, bodies, drafts
        self.width, self.share = width, share
        self.room = max(draft.room for draft in drafts)
        policy = generator.policy
        spare = policy.rows - len(drafts)
        numbers = np.stack([draft.numbers for draft in [*drafts, *[drafts[-1]] * spare]])
        self.numbers = torch.from_numpy(numbers).to(generator.student.device)  # (B, room, 2)

    def generate(self, *, by_teacher: bool) -> None:
        """Generate until every text has ended."""
        needs_teacher = self.generator.policy.needs_teacher_at
        student = self._read(self.bodies[0])
        teacher_positions = [
            position
            for position in range(self.room)
            if by_teacher or needs_teacher(position, self.share)
        ]
        teacher = self._read(self._teacher()) if teacher_positions else None
        for position in range(self.room):
            if not teacher_positions or position > teacher_positions[-1]:
                teacher = None
            logits = self.generator.student.logits(student.hidden)
            choice = self._choose(position, logits, teacher, by_teacher)
            self._note(logits, choice)
            if all(draft.is_done for draft in self.drafts):
                return
            student.push(choice.tokens)
            if teacher is not None:
                teacher.push(choice.tokens)

    def _choose(
        self, position: int, logits: Tensor, teacher: BatchedDecoder | None, by_teacher: bool
    ) -> SampledTokens:
        policy, teacher_model = self.generator.policy, self.generator.teacher
        teacher_probabilities = None
        if teacher is not None and teacher_model is not None:
            teacher_probabilities = self._shape(teacher_model.logits(teacher.hidden))

        def draw(chances: Tensor, which: int) -> Tensor:
            return sample_tokens(chances, self.numbers[:, position, which])

        if by_teacher and teacher_probabilities is not None:
            tokens = draw(teacher_probabilities, 0)
            chances = teacher_probabilities.gather(-1, tokens[:, None]).squeeze(-1)
            return SampledTokens(tokens, chances, torch.zeros_like(tokens, dtype=torch.bool))
        student_probabilities = self._shape(logits)
        return policy.choose(
            DecodeStep(
                position,
                policy.max_new_tokens,
                self.share,
                student_probabilities,
                teacher_probabilities,
                draw,
            )
        )

    def _shape(self, logits: Tensor) -> Tensor:
        policy = self.generator.policy
        return compute_sampling_probabilities(
            logits, policy.temperature, policy.top_k, policy.top_p
        )

    def _note(self, logits: Tensor, choice: SampledTokens) -> None:
        """Append a token to every unfinished rollout."""
        log_q = logits.log_softmax(-1)
        old = log_q.gather(-1, choice.tokens[:, None]).squeeze(-1)
        importance = (old - choice.chances.log()).exp()
        entropy = -(log_q.exp() * log_q).sum(-1)
        columns = [part.tolist() for part in (choice.tokens, choice.own, old, importance, entropy)]
        for draft, token, is_own, logprob, weight, nats in zip(self.drafts, *columns, strict=False):
            if draft.is_done:
                continue
            draft.ids.append(token)
            draft.own.append(is_own)
            draft.old.append(logprob)
            draft.importance.append(weight)
            draft.entropy += nats
            draft.finished = token in self.generator.ends

    def _read(self, body: nn.Module) -> BatchedDecoder:
        prompts = [draft.prompt.ids for draft in self.drafts]
        rows = self.generator.policy.rows
        return BatchedDecoder(body, prompts, rows=rows, width=self.width, room=self.room)

    def _teacher(self) -> nn.Module:
        body = self.bodies[1]
        if body is None:
            raise ValueError("this policy needs the teacher")
        return body
