"""Batch source whose steps learn from fresh rollouts, replayed rollouts or records.

Each block of steps (``reuse`` of them, mostly one) begins with a decision and, where it asks for
fresh text, with its writing, spread over the ranks. What came of it is journaled before the step is
taken: a resumed run reads the blocks it has and writes the others from the saved weights, so that
it ends with the same bytes. Whatever a policy remembers follows from the journal.
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
from stillroom.errors import IntegrityError, StillroomError
from stillroom.jobs import Journal
from stillroom.provenance import digest_json
from stillroom.train.data import RecordSource, group_by_length
from stillroom.train.distributed import ProcessGroup

__all__ = ["AssignCredit", "RolloutBatchSource", "RolloutBlock"]

AssignCredit = Callable[[Sequence[Any]], Sequence[Any]]
"""Gives each rollout's credits, given its gains: one number a token, in and out."""


@dataclass(frozen=True, slots=True)
class RolloutBlock:
    """What some steps learn from: where the text came from, and the text.

    ``level`` and ``loss`` are what an adaptive policy knew; ``again`` names kept rollouts by their
    block's first step and their number in it.
    """

    text_from: TextSource
    level: float = 0.0
    loss: float | None = None
    rollouts: tuple[Rollout, ...] = ()
    again: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "text_from": self.text_from,
            "level": self.level,
            "loss": self.loss,
            "rollouts": [one.to_json() for one in self.rollouts],
            "again": [list(name) for name in self.again],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RolloutBlock:
        """Read what ``to_json`` wrote."""
        return cls(
            data["text_from"],
            float(data["level"]),
            data["loss"],
            tuple(Rollout.from_json(one) for one in data["rollouts"]),
            tuple((int(step), int(number)) for step, number in data["again"]),
        )


@dataclass(slots=True)
class _ReplayBuffer:
    """What follows from the blocks before: level and loss of an adaptive policy, kept rollouts."""

    level: float
    loss: float | None = None
    kept: list[tuple[int, int, Rollout]] = field(default_factory=list)

    def take(self, step: int, block: RolloutBlock, capacity: int) -> None:
        self.level = block.level
        self.loss = self.loss if block.loss is None else block.loss
        if capacity and block.text_from == "student":
            self.kept += [(step, at, one) for at, one in enumerate(block.rollouts)]
            del self.kept[: max(len(self.kept) - capacity, 0)]

    def find(self, names: Sequence[tuple[int, int]]) -> tuple[Rollout, ...]:
        wanted = dict.fromkeys(names)
        found = {(step, at): one for step, at, one in self.kept if (step, at) in wanted}
        return tuple(found[name] for name in names)


class RolloutBatchSource:
    """A ``Source`` whose steps learn from rollouts, from records, or from both."""

    def __init__(
        self,
        records: RecordSource[Any, Any],
        lessons: Sequence[Any],
        prompts: Sequence[OnPolicyPrompt],
        policy: RolloutPolicy,
        writer: RolloutGenerator,
        journal: Journal,
        *,
        reading: RolloutCollator,
        size: int,
        steps: int,
        say: Callable[[str], None],
        scorer: TeacherScorer | None = None,
        credit: AssignCredit | None = None,
        validate: Callable[[nn.Module, ProcessGroup], float] | None = None,
        level: float = 0.0,
    ) -> None:
        """Set up.

        Args:
            records: Chooses the records of each step.
            lessons: What it chooses from.
            prompts: One for each lesson.
            policy: Decides, and chooses tokens.
            writer: Writes.
            journal: Keeps the blocks; used on the main rank.
            reading: Makes what is learned from of a rollout, and micro-batches of both kinds.
            size: Records of an epoch, those that cannot prompt included: they take no part, but the
                number of steps does not depend on them.
            steps: Of the whole run.
            say: Tells the user.
            scorer: Tells the teacher's log-probabilities, where the method asks for them.
            credit: Turns gains into credits, likewise.
            validate: Gives the mean loss on held-out records, where the policy asks for it.
            level: What an adaptive policy begins with.
        """
        self._records, self._lessons, self._prompts = records, lessons, prompts
        self._by_id = {prompt.record_id: prompt for prompt in prompts}
        self.policy, self.writer, self.journal = policy, writer, journal
        self._size, self._steps, self._say = size, steps, say
        self._scorer, self._credit, self._validate = scorer, credit, validate
        self._reading = reading
        self.identity = digest_json([records.identity, policy.model_dump(mode="json"), steps])
        self._memory = _ReplayBuffer(level)
        self._watch = CollapseMonitor()
        self._at = -1  # first step of the newest block in memory
        self._block = RolloutBlock("records", level)
        self._now: list[Any] = []

    def __len__(self) -> int:
        """Return how many records one epoch has."""
        return self._size

    def begin(self, step: int, model: nn.Module, ranks: ProcessGroup) -> Mapping[str, float]:
        """Decide where the step's text comes from, have it written, and return what is logged.

        Raises:
            BackendError: If a server that is asked fails.
            DataError: If the teacher's numbers are not finite.
            IntegrityError: If the journal lacks a block that the saved weights have learned from.
        """
        first = step - step % self.policy.reuse
        if first != self._at:
            self._recall(first, ranks)
            known = self._known(first, ranks)
            self._check_known(known is not None or step == first, first)
            self._enter(first, known or self._make(first, model, ranks))
            if known is None and ranks.is_main:
                self.journal.put(str(first), self._block.to_json())
                self.journal.sync()
        notes = self._choose_lessons(step)
        self._reading.hear(self._now)
        return notes

    def plan(self, step: int) -> list[list[int]]:
        """Return the micro-batches of the step that was begun, as numbers of its lessons."""
        lengths = [len(self._reading.learned(one).ids) for one in self._now]
        return group_by_length(range(len(lengths)), lengths, self._records.micro_tokens)

    def load(self, group: Sequence[int]) -> Any:
        """Return one micro-batch of the plan."""
        chosen = [self._now[number] for number in group]
        return self._reading.batch(chosen, self.writer.student.device)

    def valid(self, group: Sequence[int]) -> int:
        """Return how many positions of a planned micro-batch bear loss: after writing."""
        return sum(len(self._reading.learned(self._now[number]).positions) for number in group)

    def _choose_lessons(self, step: int) -> dict[str, float]:
        block = self._block
        texts = self._memory.find(block.again) if block.again else block.rollouts
        found = self._as_lessons(texts)
        self._now = [one for one in found if one is not None]
        is_empty = not self._now  # no rollout can be read: the step learns from its records
        if is_empty or (self.policy.beside_records and texts):
            self._now += [self._lessons[number] for number in self._records.chosen(step)]
        numbers = {**summarize_rollouts(texts), **self._reading.describe(found)}
        is_fresh = bool(block.rollouts) and step == self._at
        warning = self._watch.see(numbers) if is_fresh and block.text_from == "student" else ""
        if warning:
            self._say(warning)
        from_student = float(block.text_from in ("student", "replay"))
        return {**numbers, "from_student": from_student, "rollout_level": block.level}

    def _as_lessons(self, texts: Sequence[Rollout]) -> list[Any]:
        credits: Sequence[Any] = [None] * len(texts)
        if self._credit is not None and texts:
            credits = self._credit([_compute_gains(one) for one in texts])
        return [
            self._reading.read(
                one,
                self._by_id[one.record_id],
                None if credit is None else np.asarray(credit, np.float32),
            )
            for one, credit in zip(texts, credits, strict=True)
        ]

    def _enter(self, first: int, block: RolloutBlock) -> None:
        self._memory.take(first, block, self.policy.capacity)
        self._block, self._at = block, first

    def _recall(self, first: int, ranks: ProcessGroup) -> None:
        """Take the blocks before ``first`` that are not in memory yet from the journal."""
        begin = self._at + self.policy.reuse if self._at >= 0 else 0
        for at in range(begin, first, self.policy.reuse):
            known = self._known(at, ranks)
            self._check_known(known is not None, at)
            if known is not None:
                self._enter(at, known)
                if known.text_from == "student":
                    self._watch.see(summarize_rollouts(known.rollouts))

    def _known(self, first: int, ranks: ProcessGroup) -> RolloutBlock | None:
        """Return the block that the main rank's journal has."""
        own = self.journal.get(str(first)) if ranks.is_main else None
        data = ranks.gather(own)[0]
        return RolloutBlock.from_json(data) if data is not None else None

    def _check_known(self, is_known: bool, first: int) -> None:
        if not is_known:
            raise IntegrityError(
                f"the rollouts of optimizer step {first + 1} are not in the journal",
                code="distill.rollouts-lost",
                where=str(self.journal.path),
                expected="every step that the saved weights have learned from",
                next="start over with --overwrite",
            )

    def _make(self, first: int, model: nn.Module, ranks: ProcessGroup) -> RolloutBlock:
        policy, memory = self.policy, self._memory
        level, loss = memory.level, None
        if self._validate is not None and policy.validates(first, self._steps):
            loss = self._validate(model, ranks)
            level = policy.adapt(level, memory.loss, loss)
        seed = int(digest_json(["decide", self.writer.seed, first])[:15], 16)
        rng = np.random.default_rng(seed)
        moment = StepState(first, self._steps, float(rng.random()), level, len(memory.kept))
        is_warming = first < policy.warm_up * self._steps
        chosen = "records" if is_warming else policy.decide(moment)
        if chosen == "records":
            return RolloutBlock(chosen, level, loss)
        numbers = self._records.chosen(first)
        if chosen == "replay":
            count = min(len(numbers), len(memory.kept))
            picks = rng.choice(len(memory.kept), count, replace=False)
            names = tuple(memory.kept[int(at)][:2] for at in picks)
            return RolloutBlock(chosen, level, loss, again=names)
        prompts = [self._prompts[number] for number in numbers]
        written = self._write(prompts, first, moment.share, ranks, chosen == "teacher")
        return RolloutBlock(chosen, level, loss, written)

    def _write(
        self,
        prompts: Sequence[OnPolicyPrompt],
        step: int,
        share: float,
        ranks: ProcessGroup,
        by_teacher: bool,
    ) -> tuple[Rollout, ...]:
        """Have each rank write its share; return all, in order of the prompts."""
        trouble: StillroomError | None = None
        mine: list[Rollout] = []
        try:
            mine = self._write_own(prompts[ranks.rank :: ranks.count], step, share, by_teacher)
        except StillroomError as error:
            trouble = error
        every = ranks.gather((mine, trouble))
        for _, problem in every:
            if problem is not None:
                ranks.wait()  # none leaves while another still reads from it
                raise problem
        found: list[Rollout | None] = [None] * len(prompts)
        for rank, (texts, _) in enumerate(every):
            found[rank :: ranks.count] = texts
        return tuple(one for one in found if one is not None)

    def _write_own(
        self, prompts: Sequence[OnPolicyPrompt], step: int, share: float, by_teacher: bool
    ) -> list[Rollout]:
        if not prompts:
            return []
        texts = self.writer.write(prompts, step, share, by_teacher=by_teacher)
        if self._scorer is None:
            return texts
        pairs = zip(texts, prompts, strict=True)
        heard = [self._reading.for_teacher(one, prompt) for one, prompt in pairs]
        with torch.no_grad():
            told = iter(self._scorer.score_tokens([one for one in heard if one is not None]))
        return [
            text if one is None else text.scored(next(told))
            for text, one in zip(texts, heard, strict=True)
        ]


def _compute_gains(one: Rollout) -> Any:
    if one.teacher is None:
        raise ValueError("credit needs the teacher's log-probabilities")
    return np.where(one.own, one.teacher.astype(np.float64) - one.old, 0.0)
