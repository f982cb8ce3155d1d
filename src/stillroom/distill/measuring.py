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
from stillroom.distill.fidelity import Answered, Fidelity, RecordFidelity, Scaled, Side
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.teacher import Teacher
from stillroom.evaluate.calibration import BINS
from stillroom.evaluate.comparison import Compared, KeptStates, compare_beliefs
from stillroom.evaluate.logits import LogitReader
from stillroom.evaluate.loss import encode_records
from stillroom.evaluate.spans import Encoded
from stillroom.jobs import Job
from stillroom.models import render_chat
from stillroom.models.continuing import complete_prompts
from stillroom.provenance import digest_json
from stillroom.records import Record

__all__ = ["TEACHER", "HeldOut"]

TEACHER = "teacher"
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
        teacher: Loaded when a side is not in the journal yet.
        records: All that were held out.
    """

    recipe: DistillRecipe
    job: Job
    teacher: Teacher
    records: Sequence[Record]
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
            journal.put(name, self._measure(name, load, writes=writes).to_json())
        return Side.from_json(journal[name])

    def _measure(self, name: str, load: Callable[[], Any], *, writes: bool) -> Side:
        chosen = list(self.records[: self.recipe.fidelity.records])
        if not chosen:
            return Side(Fidelity(()), np.zeros((0, 3, BINS)))
        model = load()
        encoded = self._encode(chosen)
        writes = writes and bool(self._asked)
        total = len(chosen) + 2 * len(self._asked) * writes
        with self.job.phase(f"fidelity, {name}", total, "records") as progress:
            found, temperature = compare_beliefs(
                model, self.teacher.model, encoded, calibrate=True, kept=self._room()
            )
            progress.advance(len(chosen))
            written = self._write(name, model, progress.advance) if writes else {}
        return Side(
            Fidelity(tuple(map(RecordFidelity.of, chosen, found))),
            np.array([row.bins for row in found if row.tokens]).reshape(-1, 3, BINS),
            temperature,
            tuple(_scaled(row) for row in found if row.scaled_bins is not None),
            **written,
        )

    def _encode(self, chosen: Sequence[Record]) -> list[Encoded]:
        """Tokenize once; tell what was cut, and choose who is asked."""
        if self._encoded is None:
            cut: list[int] = []
            tokenizer, limit = self.teacher.tokenizer, self.recipe.max_tokens
            self._encoded = encode_records(
                tokenizer,
                chosen,
                max_tokens=limit,
                on_truncated=lambda index, tokens: cut.append(index),
            )
            if cut:
                self.job.say(f"fidelity: {len(cut)} held-out records were cut at {limit} tokens")
            if self.recipe.context is None:
                self._choose_asked(chosen)
            else:
                self._hear(self.recipe.context, chosen)
        return self._encoded

    def _choose_asked(self, chosen: Sequence[Record]) -> None:
        model = self.teacher.model
        context = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
        room = min(self.recipe.max_tokens, context - self.recipe.fidelity.max_new_tokens)
        for record in chosen:
            if len(self._asked) == self.recipe.fidelity.answers:
                break
            turns = record.messages
            if len(turns) < 2 or turns[-1].role != "assistant":
                self._pass_over("no question before its last answer")
                continue
            text = render_chat(self.teacher.tokenizer, turns[:-1], add_generation_prompt=True)
            ids = tuple(self.teacher.tokenizer(text, add_special_tokens=False)["input_ids"])
            if not 0 < len(ids) <= room:
                self._pass_over("prompt too long to be answered")
                continue
            answer = record.fields.get("answer")
            reference = answer if isinstance(answer, str) and answer else turns[-1].content
            self._asked.append(_Asked(record, ids, reference))

    def _hear(self, settings: ContextSettings, chosen: Sequence[Record]) -> None:
        """Keep the teacher's states in context: what a student of it is to be compared with.

        A record that cannot be read in context counts no token. None is answered: what the teacher
        says of a student's own text would have to be said in context, too.
        """
        reader = LogitReader(self.teacher.model)
        if not reader.is_chunked:
            self._pass_over("the teacher's head cannot be put on states that were kept")
            return
        own = self._encoded or []
        for at, record in enumerate(chosen):
            told = hear_record(settings, self.teacher.tokenizer, record, own[at])
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
        if self._kept:
            return self._kept
        hidden = int(getattr(self.teacher.model.config, "hidden_size", 0) or 0)
        counted = sum(len(record.targets) for record in self._encoded or ())
        return self._kept if 0 < 4 * hidden * counted <= _KEPT_BYTES else None

    def _write(self, name: str, model: Any, advance: Callable[[int], None]) -> dict[str, Any]:
        """Let a model answer and sample; compare it with its teacher on both one's own text."""
        settings, tokenizer = self.recipe.fidelity, self.teacher.tokenizer
        prompts = [asked.ids for asked in self._asked]
        likeliest, sampled = (
            complete_prompts(
                model,
                tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                temperature=temperature,
                seed=int(digest_json(["fidelity", self.recipe.seed])[:15], 16),
                on_done=advance,
            )
            for temperature in (0.0, 1.0)
        )
        answers = tuple(
            Answered(
                asked.record.id,
                str(tokenizer.decode(list(one.ids), skip_special_tokens=True)),
                asked.reference,
                one.ids,
                one.has_ended,
            )
            for asked, one in zip(self._asked, likeliest, strict=True)
        )
        own = tuple(one.ids for one in sampled)
        if name == TEACHER:
            return {"answers": answers, "sampled": own}
        theirs = Side.from_json(self.job.journal("fidelity")[TEACHER]).sampled
        free, forced = (self._by_depth(model, prompts, texts) for texts in (own, theirs))
        return {"answers": answers, "sampled": own, "free": free, "forced": forced}

    def _by_depth(
        self, model: Any, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> tuple[Any, ...]:
        encoded = [
            Encoded((*prompt, *text), (False,) * len(prompt) + (True,) * len(text))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found, _ = compare_beliefs(model, self.teacher.model, encoded)
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
