"""Measuring teacher, start, student and control on the held-out records, by the same code.

Each side is journaled when it is done: a resumed job measures none again. The teacher's body reads
a record once; its states are kept for the sides that follow, where they are small. Knows neither
plots nor words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stillroom.distill.context import ContextSettings, hear_record
from stillroom.distill.fidelity import (
    Answered,
    Fidelity,
    RecordFidelity,
    Scaled,
    Side,
    count_depths,
)
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teacher import Teacher
from stillroom.evaluate.calibration import BINS
from stillroom.evaluate.comparison import Compared, KeptStates, compare_beliefs
from stillroom.evaluate.logits import LogitReader
from stillroom.evaluate.loss import encode_records
from stillroom.evaluate.spans import Encoded
from stillroom.jobs import Job
from stillroom.models import render_chat
from stillroom.models.continuing import Continuation, complete_prompts
from stillroom.provenance import digest_json
from stillroom.records import Record

__all__ = ["TEACHER", "HeldOut"]

TEACHER = "teacher"
_PASSED_OVER = "passed over"
_KEPT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class _Asked:
    """A record that can be answered: the tokens of its prompt, and what the answer should be."""

    record: Record
    ids: tuple[int, ...]
    reference: str


@dataclass
class HeldOut:
    """The held-out records of a job, ready to measure any model on.

    Args:
        recipe: How many are measured and answered.
        job: Journal, progress, cancellation.
        records: All that were held out.
        tokenizer: Of the models that are measured.
        teacher: What they are compared with, over the same tokens; loaded when a side is not in
            the journal yet. None measures each by itself.
    """

    recipe: DistillRecipe
    job: Job
    records: Sequence[Record]
    tokenizer: Any
    teacher: Teacher | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    _encoded: list[Encoded] | None = None
    _asked: list[_Asked] = field(default_factory=list)
    _kept: KeptStates = field(default_factory=dict)

    def measure(self, name: str, load: Callable[[], Any], *, writes: bool = True) -> Side:
        """Return one side, measured now or read from the journal.

        Args:
            name: ``teacher``, ``initial``, ``final`` or ``control``.
            load: Gives the model; called only where something is still to be measured.
            writes: Whether it answers, too. The teacher comes before any side that does.

        Raises:
            Cancelled: If the user asked for it; what was measured before is kept.
        """
        journal = self.job.journal("fidelity")
        if name not in journal:
            self.job.check_cancelled()
            found = self._measure(name, load, writes=writes).to_json()
            journal.put(_PASSED_OVER, {**journal.get(_PASSED_OVER, {}), **self.passed_over})
            journal.put(name, found)
        self.passed_over |= journal.get(_PASSED_OVER, {})
        return Side.from_json(journal[name])

    def _measure(self, name: str, load: Callable[[], Any], *, writes: bool) -> Side:
        chosen = list(self.records[: self.recipe.fidelity.records])
        if not chosen:
            return Side(Fidelity(()), np.zeros((0, 3, BINS)))
        model = load()
        encoded = self._encode(chosen, model if self.teacher is None else self.teacher.model)
        judge = self.teacher.model if self.teacher is not None else None
        writes = writes and bool(self._asked)
        total = len(chosen) + (1 if judge is None else 2) * len(self._asked) * writes
        with self.job.phase(f"fidelity, {name}", total, "records") as progress:
            found, temperature = compare_beliefs(
                model, judge, encoded, calibrate=True, kept=self._room()
            )
            progress.advance(len(chosen))
            written = self._write(name, model, progress.advance) if writes else {}
        return Side(
            Fidelity(tuple(map(RecordFidelity.of, chosen, found))),
            np.array([row.bins for row in found if row.tokens]).reshape(-1, 3, BINS),
            temperature,
            tuple(_scaled(row) for row in found if row.scaled_bins is not None),
            depth=count_depths([row.kl_by_position for row in found]),
            **written,
        )

    def _encode(self, chosen: Sequence[Record], model: Any) -> list[Encoded]:
        """Tokenize once; tell what was cut, and choose who is asked."""
        if self._encoded is None:
            cut: list[int] = []
            limit = self.recipe.max_tokens
            self._encoded = encode_records(
                self.tokenizer,
                chosen,
                max_tokens=limit,
                on_truncated=lambda index, tokens: cut.append(index),
            )
            if cut:
                self.job.say(f"fidelity: {len(cut)} held-out records were cut at {limit} tokens")
            if self.recipe.context is None:
                self._choose_asked(chosen, model)
            elif self.teacher is not None:
                self._hear(self.recipe.context, chosen, self.teacher.model)
        return self._encoded

    def _choose_asked(self, chosen: Sequence[Record], model: Any) -> None:
        context = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
        room = min(self.recipe.max_tokens, context - self.recipe.fidelity.max_new_tokens)
        for record in chosen:
            if len(self._asked) == self.recipe.fidelity.answers:
                break
            turns = record.messages
            if len(turns) < 2 or turns[-1].role != "assistant":
                self._pass_over("no question before its last answer")
                continue
            text = render_chat(self.tokenizer, turns[:-1], add_generation_prompt=True)
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if not 0 < len(ids) <= room:
                self._pass_over("prompt too long to be answered")
                continue
            answer = record.fields.get("answer")
            reference = answer if isinstance(answer, str) and answer else turns[-1].content
            self._asked.append(_Asked(record, ids, reference))

    def _hear(self, settings: ContextSettings, chosen: Sequence[Record], teacher: Any) -> None:
        """Keep the teacher's states in context: what a student of it is to be compared with.

        A record that cannot be read in context counts no token. None is answered: what the teacher
        says of a student's own text would have to be said in context, too.
        """
        reader = LogitReader(teacher)
        if not reader.is_chunked:
            self._pass_over("the teacher's head cannot be put on states that were kept")
            return
        own = self._encoded or []
        for at, record in enumerate(chosen):
            told = hear_record(settings, self.tokenizer, record, own[at])
            if told is None:
                self._pass_over("no context that fits, or other tokens in it")
                own[at] = Encoded(own[at].ids, (False,) * len(own[at].ids))
                continue
            positions = torch.tensor(told.targets[: len(own[at].targets)]) - 1
            with torch.inference_mode():
                self._kept[at] = reader.pick(reader.hidden([told]), 0, positions)

    def _pass_over(self, reason: str) -> None:
        self.passed_over[reason] = self.passed_over.get(reason, 0) + 1

    def _room(self) -> KeptStates | None:
        """Return where the teacher's states are kept; None where they are too large."""
        if self._kept or self.teacher is None:
            return self._kept
        hidden = int(getattr(self.teacher.model.config, "hidden_size", 0) or 0)
        counted = sum(len(record.targets) for record in self._encoded or ())
        return self._kept if 0 < 4 * hidden * counted <= _KEPT_BYTES else None

    def _write(self, name: str, model: Any, advance: Callable[[int], None]) -> dict[str, Any]:
        """Let a model answer; where it has a teacher, compare them on both one's own text, too."""
        prompts = [asked.ids for asked in self._asked]
        answers = tuple(
            Answered(
                asked.record.id,
                str(self.tokenizer.decode(list(one.ids), skip_special_tokens=True)),
                asked.reference,
                one.ids,
                one.has_ended,
            )
            for asked, one in zip(
                self._asked, self._complete(model, prompts, 0.0, advance), strict=True
            )
        )
        if self.teacher is None:
            return {"answers": answers}
        own = tuple(one.ids for one in self._complete(model, prompts, 1.0, advance))
        if name == TEACHER:
            return {"answers": answers, "sampled": own}
        theirs = Side.from_json(self.job.journal("fidelity")[TEACHER]).sampled
        judge = self.teacher.model
        free, forced = (self._by_depth(model, judge, prompts, texts) for texts in (own, theirs))
        return {"answers": answers, "sampled": own, "free": free, "forced": forced}

    def _complete(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        advance: Callable[[int], None],
    ) -> list[Continuation]:
        return complete_prompts(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.recipe.fidelity.max_new_tokens,
            temperature=temperature,
            seed=int(digest_json(["fidelity", self.recipe.seed])[:15], 16),
            on_done=advance,
        )

    def _by_depth(
        self,
        model: Any,
        judge: Any,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
    ) -> tuple[Any, ...]:
        encoded = [
            Encoded((*prompt, *text), (False,) * len(prompt) + (True,) * len(text))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found, _ = compare_beliefs(model, judge, encoded)
        return tuple(row.kl_by_position for row in found)


def _scaled(row: Compared) -> Scaled:
    bins = np.zeros((3, BINS)) if row.scaled_bins is None else row.scaled_bins
    return Scaled(
        row.tokens,
        row.scaled_loss or 0.0,
        row.scaled_brier or 0.0,
        tuple(map(tuple, bins.tolist())),
        tuple(map(tuple, row.bins.tolist())),
    )
