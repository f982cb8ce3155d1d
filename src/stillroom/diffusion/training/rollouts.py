"""diffu-GRPO: group-relative policy optimization with one-step likelihood estimates.

Source: Zhao et al. 2025 (d1), arXiv:2504.12216, section 3 and algorithm 1: several answers per
prompt (``num_generations``, as of TRL's GRPOTrainer), rewards less the group's mean as advantages,
clipped ratios, and a KL penalty per token. Log-probabilities come from one pass with the whole
answer and a part of the prompt masked, drawn anew in every update, under the same masks for the
policy, the sampling policy and the reference.

A round starts with prompts; each gets a group of answers, a verifier rewards them
(``reward_funcs``), and several updates train on them. Answers are journaled before they are used: a
resumed run continues with the same answers and produces the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from stillroom.diffusion.sampling.sampler import generate
from stillroom.diffusion.sampling.sequence import InfillRequest, build_prompt_request, decode_text
from stillroom.diffusion.training.data import (
    CorruptedBatch,
    CorruptedExample,
    TokenizedDataset,
    TrainingContext,
    TrainingObjective,
    WeightedDataSource,
    distribute,
)
from stillroom.diffusion.training.loss import ReferenceModel, compute_logprobs, eval_without_grad
from stillroom.errors import DataError, IntegrityError
from stillroom.records import Prompt, Record
from stillroom.train.data import BatchSource

if TYPE_CHECKING:
    from stillroom.diffusion.jobs.reward import DiffusionRewardRecipe
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.sequence import SampledSequence
    from stillroom.evaluate.interfaces import Verifier
    from stillroom.train.distributed import ProcessGroup

__all__ = [
    "RewardOptimization",
    "RolloutAnswer",
    "RolloutBatch",
    "RolloutDataSource",
    "VerifiablePrompt",
    "compute_advantages",
    "compute_policy_loss",
    "tokenize_prompts",
]

_PROMPT_SEED, _SAMPLE_SEED = 21, 22  # distinct random streams


@dataclass(frozen=True, slots=True)
class VerifiablePrompt:
    """A tokenized prompt, with the fields its verifier needs."""

    record_id: str
    ids: tuple[int, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RolloutAnswer:
    """Sampled answer to a prompt.

    Args:
        task: Index of the prompt among the examples.
        ids: Prompt and answer, (T,).
        tail: First position of the answer.
        learned: Number of its tokens, including the end token.
        reward: Reward by the verifier.
    """

    task: int
    ids: tuple[int, ...]
    tail: int
    learned: int
    reward: float

    def to_json(self) -> list[Any]:
        """Return a JSON list."""
        return [self.task, list(self.ids), self.tail, self.learned, self.reward]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> RolloutAnswer:
        """Return the answer from ``to_json`` output."""
        task, ids, tail, learned, reward = data
        return cls(int(task), tuple(map(int, ids)), int(tail), int(learned), float(reward))


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Answers of a round, and the log-probabilities of their tokens in each update.

    Args:
        answers: Groups of answers, one after the other.
        wrote: Log-probabilities by the sampling policy, per update and answer.
        reference: Log-probabilities by the reference, likewise; empty without one.
    """

    answers: tuple[RolloutAnswer, ...]
    wrote: tuple[tuple[Tensor, ...], ...]
    reference: tuple[tuple[Tensor, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "answers": [answer.to_json() for answer in self.answers],
            "wrote": [[logprobs.tolist() for logprobs in update] for update in self.wrote],
            "reference": [[logprobs.tolist() for logprobs in update] for update in self.reference],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RolloutBatch:
        """Return the batch from ``to_json`` output."""
        wrote, reference = (
            tuple(
                tuple(torch.tensor(logprobs, dtype=torch.float64) for logprobs in update)
                for update in data[name]
            )
            for name in ("wrote", "reference")
        )
        return cls(tuple(map(RolloutAnswer.from_json, data["answers"])), wrote, reference)


def tokenize_prompts(
    tokenizer: Any,
    records: Sequence[Record],
    verifier: Verifier,
    *,
    max_tokens: int,
    on_done: Callable[[], None] | None = None,
) -> TokenizedDataset:
    """Tokenize prompts, and count records that are too long or cannot be verified.

    The reference answer is ``fields.answer``, or else the last assistant message.
    """
    tasks: list[VerifiablePrompt] = []
    counts = {"records_too_long": 0, "records_unverifiable": 0, "tokens": 0}
    for record in records:
        messages, answer = list(record.messages), ""
        if messages and messages[-1].role == "assistant":
            answer = messages.pop().content
        fields = {"answer": answer, **record.fields}
        prompt = Prompt(tuple(messages))
        request = build_prompt_request(tokenizer, prompt, 0, tools=record.tools)
        if verifier.lacks(fields) or not messages:
            counts["records_unverifiable"] += 1
        elif len(request.ids) > max_tokens:
            counts["records_too_long"] += 1
        else:
            tasks.append(
                VerifiablePrompt(record.id, tuple(token or 0 for token in request.ids), fields)
            )
            counts["tokens"] += len(request.ids)
        if on_done:
            on_done()
    return TokenizedDataset(tasks, {"records": len(tasks), **counts})


def _read_reward(recipe: DiffusionRewardRecipe, text: str, task: VerifiablePrompt) -> float:
    check = recipe.verifier.check(text, task.fields)
    if check.keep:
        return 1.0
    return check.score if recipe.partial_credit and check.score < 1 else 0.0


def compute_advantages(rewards: Tensor, *, scale_rewards: bool) -> Tensor:
    """Return each answer's reward less the mean of its group, (G, n).

    Args:
        rewards: Rewards of the answers to each prompt, (G, n).
        scale_rewards: Divide by the standard deviation of the group.
    """
    centered = rewards - rewards.mean(-1, keepdim=True)
    if not scale_rewards:
        return centered
    return centered / (rewards.std(-1, keepdim=True, correction=0) + 1e-4)


def compute_policy_loss(
    policy: Tensor,
    sampled: Tensor,
    reference: Tensor | None,
    advantage: Tensor,
    *,
    epsilon: float,
    beta: float,
) -> Tensor:
    """Return the loss of each token, (N,).

    Args:
        policy: Log-probabilities of the policy, (N,).
        sampled: Log-probabilities of the sampling policy, (N,).
        reference: Log-probabilities of the reference, (N,); None without a KL penalty.
        advantage: Advantage of each token's answer, (N,).
        epsilon: Clipping range of the ratio around 1.
        beta: Weight of the KL penalty.
    """
    ratio = (policy - sampled).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    gain = (ratio * advantage).minimum(clipped * advantage)
    if reference is None:
        return -gain
    difference = reference - policy
    return beta * (difference.exp() - difference - 1) - gain


def _count_learned(sample: SampledSequence, tail: int, ends: Sequence[int]) -> int:
    """Return the number of learned tokens of an answer, including its end token."""
    count = len(sample.new_ids)
    end = tail + count
    has_end = sample.finish_reason == "stop" and end < len(sample.ids) and sample.ids[end] in ends
    return count + int(has_end)


class RolloutDataSource(WeightedDataSource):
    """Source of sampled answers, weighted by the gradient of the loss."""

    def __init__(self, recipe: DiffusionRewardRecipe, context: TrainingContext) -> None:
        """Prepare a training run; the reference is the current model."""
        super().__init__(recipe, context, [task.record_id for task in context.examples])
        self.recipe = recipe
        self.reference = ReferenceModel(context.model) if recipe.beta else None
        self._journal = context.job.journal("rollouts")
        self._at = -1
        self._round = RolloutBatch((), (), ())

    def __len__(self) -> int:
        """Return the number of examples per epoch: each prompt serves several updates."""
        return len(self.ids) * self.recipe.num_iterations

    def describe(self) -> object:
        """Return the record and the token ids of every prompt."""
        return [[task.record_id, list(task.ids)] for task in self.context.examples]

    def weigh(
        self, step: int, ranks: ProcessGroup
    ) -> tuple[list[CorruptedExample], dict[str, float]]:
        """Return the round's answers under this update's masks, weighted."""
        update = step % self.recipe.num_iterations
        self._enter(step - update, ranks, is_first=update == 0)
        answers = self._round.answers
        texts = self._texts_of(update)
        wrote = self._round.wrote[update]
        now = wrote if update == 0 else self._read(texts, ranks)
        rewards = torch.tensor([answer.reward for answer in answers], dtype=torch.float64).view(
            -1, self.recipe.num_generations
        )
        scaled = compute_advantages(rewards, scale_rewards=self.recipe.scale_rewards)
        advantages = scaled.flatten()
        counts = [len(logprobs) for logprobs in wrote]
        leaf = torch.cat(list(now)).requires_grad_(True)
        losses = compute_policy_loss(
            leaf,
            torch.cat(list(wrote)),
            torch.cat(list(self._round.reference[update])) if self.reference else None,
            advantages.repeat_interleave(torch.tensor(counts)),
            epsilon=self.recipe.epsilon,
            beta=self.recipe.beta,
        )
        share = 1 / torch.tensor(counts, dtype=torch.float64).repeat_interleave(
            torch.tensor(counts)
        )
        (slope,) = torch.autograd.grad((losses * share).sum(), leaf)
        weighed = []
        parts = zip(
            texts, torch.split(slope, counts), torch.split(losses * share, counts), strict=True
        )
        for text, text_slope, text_losses in parts:
            scale = np.zeros(len(text.ids))
            scale[text.is_learned] = -text_slope.detach().numpy()
            weighed.append(
                replace(text, scale=scale, units=1, logged_loss=float(text_losses.detach().sum()))
            )
        drift = leaf.detach() - torch.cat(list(wrote))
        is_clipped = (drift.exp() - 1).abs() > self.recipe.epsilon
        rewards = rewards.float()
        notes = {
            "reward/mean": float(rewards.mean()),
            "reward/groups_alike": float((rewards.std(-1, correction=0) == 0).double().mean()),
            "answer/tokens": float(np.mean(counts)),
            "ratio/clipped": float(is_clipped.double().mean()),
        }
        if self.reference is not None:
            apart = torch.cat(list(self._round.reference[update])) - leaf.detach()
            notes["reference/kl"] = float((apart.exp() - apart - 1).mean())
        return weighed, notes

    def _enter(self, first: int, ranks: ProcessGroup, *, is_first: bool) -> None:
        """Set the round that starts at a step: the current one, from the journal, or new."""
        if first == self._at:
            return
        known = ranks.gather(self._journal.get(str(first)) if ranks.is_main else None)[0]
        if known is None and not is_first:
            raise IntegrityError(
                f"the rollouts of optimizer step {first + 1} are missing in the journal",
                code="diffusion.rollouts-lost",
                where=str(self._journal.path),
                expected="every round that the saved weights were trained on",
                next="start over with --overwrite",
            )
        self._round = (
            RolloutBatch.from_json(known) if known is not None else self._write(first, ranks)
        )
        self._at = first
        if known is None and ranks.is_main:
            self._journal.put(str(first), self._round.to_json())
            self._journal.sync()

    def _write(self, first: int, ranks: ProcessGroup) -> RolloutBatch:
        """Sample the answers of a round, and compute rewards and log-probabilities."""
        numbers = self._records.chosen(first // self.recipe.num_iterations)
        group = self.recipe.num_generations
        draws = [
            (number, int(seed))
            for index, number in enumerate(numbers)
            for seed in np.random.default_rng(
                [self.recipe.seed, first, _SAMPLE_SEED, index]
            ).integers(2**31, size=group)
        ]
        answers = tuple(distribute(ranks, draws, self._answer))
        rollouts = RolloutBatch(answers, (), ())
        self._round, self._at = rollouts, first
        updates = range(self.recipe.num_iterations)
        wrote = tuple(tuple(self._read(self._texts_of(update), ranks)) for update in updates)
        reference = (
            tuple(
                tuple(self._read(self._texts_of(update), ranks, by_reference=True))
                for update in updates
            )
            if self.reference is not None
            else ()
        )
        return RolloutBatch(answers, wrote, reference)

    def _answer(self, draws: Sequence[tuple[int, int]]) -> list[RolloutAnswer]:
        model, room = self.context.model, self.recipe.decode.max_new_tokens
        tasks = [self.context.examples[number] for number, _ in draws]
        requests = [
            InfillRequest(task.ids, room, seed)
            for task, (_, seed) in zip(tasks, draws, strict=True)
        ]
        with eval_without_grad(model.network):
            samples = generate(model, requests, self.recipe.decode) if requests else []
        ends = model.metadata.end_token_ids
        answers = []
        for (number, _), task, sample in zip(draws, tasks, samples, strict=True):
            tail = len(task.ids)
            reward = _read_reward(self.recipe, decode_text(model.tokenizer, sample.new_ids), task)
            learned = max(_count_learned(sample, tail, ends), 1)
            answers.append(RolloutAnswer(number, sample.ids, tail, learned, reward))
        return answers

    def _texts_of(self, update: int) -> list[CorruptedExample]:
        """Return the answers, fully masked, after prompts masked in part for this update."""
        examples = []
        for index, answer in enumerate(self._round.answers):
            ids = np.asarray(answer.ids, dtype=np.int64)
            rng = np.random.default_rng([self.recipe.seed, self._at, update, _PROMPT_SEED, index])
            positions = np.arange(len(ids))
            is_masked = (positions >= answer.tail) | (
                rng.random(len(ids)) < self.recipe.p_mask_prompt
            )
            is_masked[: int(self.metadata.logit_shift)] = False
            is_learned = (positions >= answer.tail) & (positions < answer.tail + answer.learned)
            name, ones = self.ids[answer.task], np.ones(len(ids))
            examples.append(CorruptedExample(name, ids, is_masked, is_learned, ones, ones, 1))
        return examples

    def _read(
        self, texts: Sequence[CorruptedExample], ranks: ProcessGroup, *, by_reference: bool = False
    ) -> list[Tensor]:
        def read(part: Sequence[CorruptedExample]) -> list[Tensor]:
            if by_reference and self.reference is not None:
                return self.reference.read(part, micro_tokens=self.micro_tokens)
            return compute_logprobs(self.context.model, part, micro_tokens=self.micro_tokens)

        return distribute(ranks, texts, read)


def _evaluate_prompts(
    recipe: DiffusionRewardRecipe, model: DiffusionModel, tasks: Sequence[VerifiablePrompt]
) -> dict[str, float]:
    """Return the mean reward of greedy answers to held-out prompts."""
    if not tasks:
        return {}
    settings = recipe.decode.model_copy(update={"temperature": 0.0})
    requests = [InfillRequest(task.ids, settings.max_new_tokens, 0) for task in tasks]
    with eval_without_grad(model.network):
        samples = generate(model, requests, settings)
    rewards = [
        _read_reward(recipe, decode_text(model.tokenizer, sample.new_ids), task)
        for sample, task in zip(samples, tasks, strict=True)
    ]
    return {"reward/greedy": sum(rewards) / len(rewards), "reward/tasks": float(len(tasks))}


class RewardOptimization(TrainingObjective["DiffusionRewardRecipe"]):
    """Group-relative policy optimization of verified answers."""

    @property
    @override
    def steps_per_batch(self) -> int:
        """Number of updates on the same answers."""
        return self.recipe.num_iterations

    @override
    def tokenize(
        self,
        model: DiffusionModel,
        records: Sequence[Record],
        on_done: Callable[[], None] | None = None,
    ) -> TokenizedDataset:
        room = model.context_length - self.recipe.decode.max_new_tokens
        return tokenize_prompts(
            model.tokenizer,
            records,
            self.recipe.verifier,
            max_tokens=min(self.recipe.max_tokens, room),
            on_done=on_done,
        )

    @override
    def open_source(self, context: TrainingContext) -> BatchSource[CorruptedBatch]:
        return RolloutDataSource(self.recipe, context)

    @override
    def no_examples_error(self, records: int) -> DataError:
        verifier = self.recipe.verifier
        needs = " or ".join(f"fields.{name}" for name in verifier.needs) or "nothing else"
        return DataError(
            f"none of {records} records is a task for verifier '{verifier.method_name()}'",
            code="diffusion.no-tasks",
            where="records",
            expected=f"a user message within {self.recipe.max_tokens} tokens, and {needs}",
            next="choose another verifier, or raise max_tokens",
        )

    @override
    def evaluate(self, model: DiffusionModel, records: Sequence[Record]) -> dict[str, float]:
        return _evaluate_prompts(self.recipe, model, self.tokenize(model, records).items)
