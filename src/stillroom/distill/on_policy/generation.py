"""Batched generation of rollouts with a KV cache from the model in training.

A text's random numbers come from the recipe's seed, the step and its record, and the shapes it
meets follow from its own prompt (``BatchedDecoder``), so that neither the texts beside it nor the
number of ranks change it: exactly so where a row of a matrix product does not depend on the other
rows, as on one thread of a processor; with more threads, and elsewhere, up to the last bits.
Products have the precision of training; with bfloat16 the layers' weights are cast once a step, not
in every call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
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
    """Return what tokens are drawn from, (B, V), given logits (B, V).

    Args:
        logits: Of the model.
        temperature: Above 0.
        top_k: Keep so many likeliest; 0 keeps all.
        top_p: Keep the likeliest that together have this mass, at least one.
    """
    scores = logits / temperature if temperature != 1 else logits
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    chances = scores.softmax(-1)
    if top_p < 1:
        ordered, index = chances.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        kept = ordered.masked_fill(before >= top_p, 0.0)
        chances = torch.zeros_like(chances).scatter_(-1, index, kept)
        chances /= chances.sum(-1, keepdim=True)
    return chances


def sample_tokens(chances: Tensor, numbers: Tensor) -> Tensor:
    """Return a token of each row, (B,): the first whose cumulated chance exceeds the number.

    Args:
        chances: (B, V), at least 0, not all 0.
        numbers: (B,), in [0, 1).
    """
    sums = chances.double().cumsum(-1)
    wanted = numbers.to(sums) * sums[:, -1]
    found = torch.searchsorted(sums, wanted[:, None], right=True).squeeze(-1)
    return found.clamp_(max=chances.shape[-1] - 1)


class GenerationModel:
    """A model that writes: its body in evaluation mode, and its head's weight, ready to use."""

    def __init__(
        self, model: nn.Module, *, rows: int, precision: str, is_fixed: bool = False
    ) -> None:
        """Set up.

        Args:
            model: A causal model, low-rank additions included.
            rows: Tokens of the vocabulary; others are never drawn.
            precision: ``float32`` or ``bfloat16``, of the matrix products.
            is_fixed: Its weights do not change, and are in that precision where they should be.
        """
        self.model, self.rows, self.precision, self.is_fixed = model, rows, precision, is_fixed
        self.device = next(model.parameters()).device
        self._twin: nn.Module | None = None
        self._head = LMHead.of(model, rows)
        self._operand: Tensor | None = None

    @contextmanager
    def ready(self) -> Iterator[nn.Module]:
        """Give the body with the weights of now, in evaluation mode and without gradients."""
        body = get_body(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), autocast_body(self.precision, self.device):
                self._head = LMHead.of(self.model, self.rows)
                self._operand = self._head.operand(matmul_dtype(self.precision))
                is_plain = self.is_fixed or self.precision == "float32"
                yield body if is_plain else self._lowered(body)
        finally:
            self._operand = None
            self.model.train(was_training)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (B, rows) of hidden states (B, H), in full precision; within ``ready``."""
        if self._operand is None:
            raise ValueError("logits are asked for within ready()")
        with torch.autocast(self.device.type, enabled=False):
            return self._head.shape_logits(self._head.project(hidden, self._operand))

    def _lowered(self, body: nn.Module) -> nn.Module:
        """Return a copy whose linear layers are cast, with the weights of now."""
        if self._twin is None:
            self._twin = copy.deepcopy(body).requires_grad_(False)
            for module in self._twin.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        else:
            for kept, now in zip(self._twin.parameters(), body.parameters(), strict=True):
                kept.copy_(now)
        self._twin.eval()
        return self._twin


@dataclass(slots=True)
class _PartialRollout:
    """One rollout while it is written."""

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
    """Writes the rollouts of a step."""

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
        """Set up.

        Args:
            policy: Who chooses each token.
            student: The model that is trained.
            teacher: Needed where the policy, or whole texts, are the teacher's.
            ends: Tokens that end a rollout.
            max_tokens: Of prompt and rollout together.
            seed: Of the recipe.
        """
        self.policy, self.student, self.teacher = policy, student, teacher
        self.ends, self.max_tokens, self.seed = ends, max_tokens, seed

    def write(
        self,
        prompts: Sequence[OnPolicyPrompt],
        step: int,
        share: float,
        *,
        by_teacher: bool = False,
    ) -> list[Rollout]:
        """Return a rollout for each prompt, in order.

        Args:
            prompts: What to go on from; each shorter than ``max_tokens``.
            step: Seeds the draws, with the recipe's seed and each prompt's record.
            share: How much of the run is over.
            by_teacher: The teacher writes alone.
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
                    batch.write(by_teacher=by_teacher)
        return [draft.done() for draft in drafts]

    def _begin(self, prompt: OnPolicyPrompt, step: int) -> _PartialRollout:
        room = min(self.policy.max_new_tokens, self.max_tokens - len(prompt.ids))
        seed = int(digest_json(["rollout", self.seed, step, prompt.record_id])[:15], 16)
        # As many numbers for every text, so that its room does not change what it draws.
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
    """Rollouts written side by side."""

    def __init__(
        self,
        writer: RolloutGenerator,
        bodies: tuple[nn.Module, nn.Module | None],
        drafts: list[_PartialRollout],
        width: int,
        share: float,
    ) -> None:
        self.writer, self.bodies, self.drafts = writer, bodies, drafts
        self.width, self.share = width, share
        self.room = max(draft.room for draft in drafts)
        policy = writer.policy
        spare = policy.rows - len(drafts)
        numbers = np.stack([draft.numbers for draft in [*drafts, *[drafts[-1]] * spare]])
        self.numbers = torch.from_numpy(numbers).to(writer.student.device)  # (B, room, 2)

    def write(self, *, by_teacher: bool) -> None:
        """Write until every text has ended."""
        wants = self.writer.policy.wants_teacher
        student = self._read(self.bodies[0])
        wanted = [place for place in range(self.room) if by_teacher or wants(place, self.share)]
        teacher = self._read(self._teacher()) if wanted else None
        for place in range(self.room):
            if not wanted or place > wanted[-1]:
                teacher = None
            logits = self.writer.student.logits(student.hidden)
            choice = self._choose(place, logits, teacher, by_teacher)
            self._note(logits, choice)
            if all(draft.is_done for draft in self.drafts):
                return
            student.push(choice.tokens)
            if teacher is not None:
                teacher.push(choice.tokens)

    def _choose(
        self, place: int, logits: Tensor, teacher: BatchedDecoder | None, by_teacher: bool
    ) -> SampledTokens:
        policy, author = self.writer.policy, self.writer.teacher
        theirs = None
        if teacher is not None and author is not None:
            theirs = self._shape(author.logits(teacher.hidden))
        draw = self._drawer(place)
        if by_teacher and theirs is not None:
            tokens = draw(theirs, 0)
            chances = theirs.gather(-1, tokens[:, None]).squeeze(-1)
            return SampledTokens(tokens, chances, torch.zeros_like(tokens, dtype=torch.bool))
        ours = self._shape(logits)
        return policy.choose(
            DecodeStep(place, policy.max_new_tokens, self.share, ours, theirs, draw)
        )

    def _drawer(self, place: int) -> Callable[[Tensor, int], Tensor]:
        return lambda chances, which: sample_tokens(chances, self.numbers[:, place, which])

    def _shape(self, logits: Tensor) -> Tensor:
        policy = self.writer.policy
        return compute_sampling_probabilities(
            logits, policy.temperature, policy.top_k, policy.top_p
        )

    def _note(self, logits: Tensor, choice: SampledTokens) -> None:
        """Write a token into every draft that has not ended."""
        log_q = logits.log_softmax(-1)
        old = log_q.gather(-1, choice.tokens[:, None]).squeeze(-1)
        importance = (old - choice.chances.log()).exp()
        entropy = -(log_q.exp() * log_q).sum(-1)
        told = [part.tolist() for part in (choice.tokens, choice.own, old, importance, entropy)]
        for draft, token, own, logprob, weight, nats in zip(self.drafts, *told, strict=False):
            if draft.is_done:
                continue
            draft.ids.append(token)
            draft.own.append(own)
            draft.old.append(logprob)
            draft.importance.append(weight)
            draft.entropy += nats
            draft.finished = token in self.writer.ends

    def _read(self, body: nn.Module) -> BatchedDecoder:
        prompts = [draft.prompt.ids for draft in self.drafts]
        rows = self.writer.policy.rows
        return BatchedDecoder(body, prompts, rows=rows, width=self.width, room=self.room)

    def _teacher(self) -> nn.Module:
        body = self.bodies[1]
        if body is None:
            raise ValueError("this policy needs the teacher")
        return body
