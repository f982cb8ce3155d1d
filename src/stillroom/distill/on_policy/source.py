"""Batch source of on-policy steps: fresh rollouts, replayed rollouts or records.

The policy of ``rollout_policies`` decides which. Each block of steps (``reuse`` of them, usually
one) begins with a decision and, if it requires fresh text, with generation, distributed over the
ranks. The result is journaled before the step is taken: a resumed run reads existing blocks and
generates the others from the saved weights, so that it produces the same bytes. The state of a
policy is reconstructed from the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from stillroom.distill.interfaces import RolloutPolicy
from stillroom.distill.on_policy.collators import RolloutCollator
from stillroom.distill.on_policy.generation import RolloutGenerator
from stillroom.distill.on_policy.rollout import (
    CollapseMonitor,
    OnPolicyPrompt,
    Rollout,
    summarize_rollouts,
)
from stillroom.distill.teachers.local import TeacherScorer
from stillroom.distill.types import StepState, TextSource
from stillroom.errors import IntegrityError
from stillroom.jobs import Journal
from stillroom.provenance import digest_json
from stillroom.train.data import RecordSource, group_by_length
from stillroom.train.distributed import ProcessGroup

__all__ = ["AssignCredit", "RolloutBatchSource", "RolloutBlock"]

AssignCredit = Callable[[Sequence[Any]], Sequence[Any]]
"""Returns each rollout's credits, given its gains: one number per token."""


@dataclass(frozen=True, slots=True)
class RolloutBlock:
    """Training text of some steps and its source.

    ``level`` and ``loss`` are the state of an adaptive policy; ``again`` identifies replayed
    rollouts by their block's first step and their index in it.
    """

    text_from: TextSource
    level: float = 0.0
    loss: float | None = None
    rollouts: tuple[Rollout, ...] = ()
    again: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "text_from": self.text_from,
            "level": self.level,
            "loss": self.loss,
            "rollouts": [rollout.to_json() for rollout in self.rollouts],
            "again": [list(name) for name in self.again],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RolloutBlock:
        """Build from the output of ``to_json``."""
        return cls(
            data["text_from"],
            float(data["level"]),
            data["loss"],
            tuple(Rollout.from_json(rollout) for rollout in data["rollouts"]),
            tuple((int(step), int(number)) for step, number in data["again"]),
        )


@dataclass(slots=True)
class _ReplayBuffer:
    """State from previous blocks: level and loss of an adaptive policy, stored rollouts."""

    level: float
    loss: float | None = None
    kept: list[tuple[int, int, Rollout]] = field(default_factory=list)

    def take(self, step: int, block: RolloutBlock, capacity: int) -> None:
        self.level = block.level
        self.loss = self.loss if block.loss is None else block.loss
        if capacity and block.text_from == "student":
            self.kept += [(step, index, rollout) for index, rollout in enumerate(block.rollouts)]
            del self.kept[: max(len(self.kept) - capacity, 0)]

    def find(self, names: Sequence[tuple[int, int]]) -> tuple[Rollout, ...]:
        requested = dict.fromkeys(names)
        by_name = {
            (step, index): rollout
            for step, index, rollout in self.kept
            if (step, index) in requested
        }
        return tuple(by_name[name] for name in names)


class RolloutBatchSource:
    """A ``BatchSource`` whose steps train on rollouts, on records, or on both."""

    def __init__(
        self,
        records: RecordSource[Any, Any],
        items: Sequence[Any],
        prompts: Sequence[OnPolicyPrompt],
        policy: RolloutPolicy,
        generator: RolloutGenerator,
        journal: Journal,
        *,
        collator: RolloutCollator,
        size: int,
        steps: int,
        warn: Callable[[str], None],
        scorer: TeacherScorer | None = None,
        credit: AssignCredit | None = None,
        validate: Callable[[nn.Module, ProcessGroup], float] | None = None,
        level: float = 0.0,
    ) -> None:
        """Initialize the source.

        Args:
            records: Selects the records of each step.
            items: Training items of the records.
            prompts: Prompt of each item.
            policy: Rollout policy.
            generator: Generator of the rollouts.
            journal: Journal of the blocks; used on the main rank.
            collator: Collator of rollouts and records.
            size: Records of an epoch, including those without a usable prompt: they are not used,
                but the number of steps does not depend on them.
            steps: Steps of the whole run.
            warn: Logs a warning.
            scorer: Returns the teacher's log-probabilities, if the method needs them.
            credit: Converts gains to credits, if the method needs them.
            validate: Returns the mean loss on held-out records, if the policy needs it.
            level: Initial level of an adaptive policy.
        """
        self._records, self._record_items, self._prompts = records, items, prompts
        self._by_id = {prompt.record_id: prompt for prompt in prompts}
        self.policy, self.generator, self.journal = policy, generator, journal
        self._size, self._steps, self._warn = size, steps, warn
        self._scorer, self._credit, self._validate = scorer, credit, validate
        self._collator = collator
        self.identity = digest_json([records.identity, policy.model_dump(mode="json"), steps])
        self._buffer = _ReplayBuffer(level)
        self._monitor = CollapseMonitor()
        self._first_step = -1  # first step of the newest block in memory
        self._block = RolloutBlock("records", level)
        self._items: list[Any] = []

    def __len__(self) -> int:
        return self._size

    @property
    def has_generated(self) -> bool:
        """Whether a step has used generated text, before the job was resumed too."""
        keys = self.journal.keys()
        return any(self.journal[key]["rollouts"] for key in keys)

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Select the step's text, generate it if necessary, and return metrics to log.

        Raises:
            BackendError: If a queried endpoint fails.
            DataError: If a teacher's value is not finite.
            IntegrityError: If the journal lacks a block on which the saved weights were trained.
        """
        first = step - step % self.policy.reuse
        if first != self._first_step:
            self._restore_blocks(first, ranks)
            stored = self._read_block(first, ranks)
            self._check_stored(stored is not None or step == first, first)
            self._set_block(first, stored or self._make(first, model, ranks))
            if stored is None and ranks.is_main:
                self.journal.put(str(first), self._block.to_json())
                self.journal.sync()
        metrics = self._select_items(step)
        self._collator.fetch(self._items)
        return metrics

    def plan(self, step: int) -> list[list[int]]:
        """Return the micro-batches of the current step, as indices of its items."""
        lengths = [len(self._collator.student_view(item).ids) for item in self._items]
        return group_by_length(range(len(lengths)), lengths, self._records.micro_tokens)

    def load(self, group: Sequence[int]) -> Any:
        """Return one planned micro-batch."""
        items = [self._items[number] for number in group]
        return self._collator.batch(items, self.generator.student.device)

    def valid(self, group: Sequence[int]) -> int:
        """Return the number of loss positions of a planned micro-batch."""
        return sum(
            len(self._collator.student_view(self._items[number]).positions) for number in group
        )

    def _select_items(self, step: int) -> dict[str, float]:
        block = self._block
        rollouts = self._buffer.find(block.again) if block.again else block.rollouts
        items = self._convert(rollouts)
        self._items = [item for item in items if item is not None]
        is_empty = not self._items  # no rollout is usable: the step trains on its records
        if is_empty or (self.policy.beside_records and rollouts):
            self._items += [self._record_items[number] for number in self._records.chosen(step)]
        numbers = {**summarize_rollouts(rollouts), **self._collator.metrics(items)}
        is_fresh = bool(block.rollouts) and step == self._first_step
        line = self._monitor.update(numbers) if is_fresh and block.text_from == "student" else ""
        if line:
            self._warn(line)
        from_student = float(block.text_from in ("student", "replay"))
        return {**numbers, "from_student": from_student, "rollout_level": block.level}

    def _convert(self, rollouts: Sequence[Rollout]) -> list[Any]:
        credits: Sequence[Any] = [None] * len(rollouts)
        if self._credit is not None and rollouts:
            credits = self._credit([_compute_gains(rollout) for rollout in rollouts])
        return [
            self._collator.convert(
                rollout,
                self._by_id[rollout.record_id],
                None if credit is None else np.asarray(credit, np.float32),
            )
            for rollout, credit in zip(rollouts, credits, strict=True)
        ]

    def _set_block(self, first: int, block: RolloutBlock) -> None:
        self._buffer.take(first, block, self.policy.capacity)
        self._block, self._first_step = block, first

    def _restore_blocks(self, first: int, ranks: ProcessGroup) -> None:
        """Read the blocks before ``first`` that are not in memory from the journal."""
        begin = self._first_step + self.policy.reuse if self._first_step >= 0 else 0
        for start in range(begin, first, self.policy.reuse):
            stored = self._read_block(start, ranks)
            self._check_stored(stored is not None, start)
            if stored is not None:
                self._set_block(start, stored)
                if stored.text_from == "student":
                    self._monitor.update(summarize_rollouts(stored.rollouts))

    def _read_block(self, first: int, ranks: ProcessGroup) -> RolloutBlock | None:
        """Return a block from the main rank's journal, if it has it."""
        stored = self.journal.get(str(first)) if ranks.is_main else None
        data = ranks.gather(stored)[0]
        return RolloutBlock.from_json(data) if data is not None else None

    def _check_stored(self, is_known: bool, first: int) -> None:
        if not is_known:
            raise IntegrityError(
                f"the rollouts of optimizer step {first + 1} are not in the journal",
                code="distill.rollouts-lost",
                where=str(self.journal.path),
                expected="every step on which the saved weights were trained",
                next="start over with --overwrite",
            )

    def _make(self, first: int, model: nn.Module, ranks: ProcessGroup) -> RolloutBlock:
        policy, memory = self.policy, self._buffer
        level, loss = memory.level, None
        if self._validate is not None and policy.validates(first, self._steps):
            loss = self._validate(model, ranks)
            level = policy.adapt(level, memory.loss, loss)
        seed = int(digest_json(["decide", self.generator.seed, first])[:15], 16)
        rng = np.random.default_rng(seed)
        state = StepState(first, self._steps, float(rng.random()), level, len(memory.kept))
        is_warming = first < policy.warm_up * self._steps
        text_from = "records" if is_warming else policy.decide(state)
        if text_from == "records":
            return RolloutBlock(text_from, level, loss)
        numbers = self._records.chosen(first)
        if text_from == "replay":
            count = min(len(numbers), len(memory.kept))
            picks = rng.choice(len(memory.kept), count, replace=False)
            names = tuple(memory.kept[int(pick)][:2] for pick in picks)
            return RolloutBlock(text_from, level, loss, again=names)
        prompts = [self._prompts[number] for number in numbers]
        rollouts = self._generate(prompts, first, state.share, ranks, text_from == "teacher")
        return RolloutBlock(text_from, level, loss, rollouts)

    def _generate(
        self,
        prompts: Sequence[OnPolicyPrompt],
        step: int,
        share: float,
        ranks: ProcessGroup,
        by_teacher: bool,
    ) -> tuple[Rollout, ...]:
        """Generate this rank's share; return all rollouts, in order of the prompts."""
        own_prompts = prompts[ranks.rank :: ranks.count]
        own_rollouts = ranks.agree(
            lambda: self._generate_share(own_prompts, step, share, by_teacher)
        )
        rollouts: list[Rollout | None] = [None] * len(prompts)
        for rank, texts in enumerate(ranks.gather(own_rollouts)):
            rollouts[rank :: ranks.count] = texts
        return tuple(rollout for rollout in rollouts if rollout is not None)

    def _generate_share(
        self, prompts: Sequence[OnPolicyPrompt], step: int, share: float, by_teacher: bool
    ) -> list[Rollout]:
        if not prompts:
            return []
        rollouts = self.generator.generate(prompts, step, share, by_teacher=by_teacher)
        if self._scorer is None:
            return rollouts
        pairs = zip(rollouts, prompts, strict=True)
        teacher_views = [
            self._collator.teacher_view(tokenized, prompt) for tokenized, prompt in pairs
        ]
        with torch.no_grad():
            scores = iter(
                self._scorer.score_tokens(
                    [tokenized for tokenized in teacher_views if tokenized is not None]
                )
            )
        return [
            rollout if tokenized is None else rollout.scored(next(scores))
            for rollout, tokenized in zip(rollouts, teacher_views, strict=True)
        ]


def _compute_gains(rollout: Rollout) -> Any:
    if rollout.teacher is None:
        raise ValueError("credit needs the teacher's log-probabilities")
    return np.where(rollout.own, rollout.teacher.astype(np.float64) - rollout.old, 0.0)
