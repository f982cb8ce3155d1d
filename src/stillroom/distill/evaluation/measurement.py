"""Measurement of models on held-out records, and of their latency and peak memory.

Each model is journaled when it is measured, so that a resumed job measures none twice. The
teacher's body reads a record once; its hidden states are kept for the following models if they are
small.

``timings.json`` and ``timings.html`` are written next to the output, not into it, so that equal
work gives equal artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.distill.data.preparation import encode_with_context
from stillroom.distill.evaluation.metrics import (
    TEACHER,
    Fidelity,
    GeneratedAnswer,
    ModelFidelity,
    RecordFidelity,
    TemperatureScaled,
    bin_by_position,
)
from stillroom.distill.recipes import TrainingRecipe
from stillroom.distill.settings import TeacherContextSettings
from stillroom.distill.teachers.local import LocalTeacher
from stillroom.evaluate import Metric, Plot, Report, bootstrap
from stillroom.evaluate.lm.divergence import (
    CachedStates,
    DistributionMetrics,
    compare_distributions,
)
from stillroom.evaluate.lm.loss import LogitReader
from stillroom.evaluate.metrics.calibration import NUM_BINS
from stillroom.evaluate.report import ComparisonTable, render_page
from stillroom.jobs import Job, atomic_write
from stillroom.models import render_chat
from stillroom.models.local.benchmark import SpeedResult, measure_model_speed
from stillroom.models.local.generation import Continuation, complete_prompts
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversations
from stillroom.provenance import digest_json
from stillroom.records import Record
from stillroom.train.data import order_records

__all__ = [
    "TIMINGS",
    "HeldOutEvaluator",
    "measure_timings",
    "write_timings",
]

_SKIPPED = "passed over"
_MAX_CACHED_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class _GenerationPrompt:
    """A record to answer: prompt tokens and reference answer."""

    record: Record
    ids: tuple[int, ...]
    reference: str


@dataclass
class HeldOutEvaluator:
    """Held-out records of a job, for measuring any model.

    Args:
        recipe: Numbers of records measured and answered.
        job: Journal, progress, cancellation.
        records: All held-out records.
        tokenizer: Tokenizer of the measured models.
        teacher: Teacher over the same vocabulary, loaded when a model is not in the journal. None
            measures each model by itself.
        context: Context that only the teacher reads.
    """

    recipe: TrainingRecipe
    job: Job
    records: Sequence[Record]
    tokenizer: Any
    teacher: LocalTeacher | None = None
    context: TeacherContextSettings | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    _encoded: list[EncodedConversation] | None = None
    _prompts: list[_GenerationPrompt] = field(default_factory=list)
    _cached_states: CachedStates = field(default_factory=dict)

    def measure(self, name: str, load: Callable[[], Any], *, writes: bool = True) -> ModelFidelity:
        """Measure a model, or read it from the journal.

        Args:
            name: ``teacher``, ``initial``, ``final`` or ``baseline``.
            load: Loads the model; called only if it has not been measured.
            writes: Whether the model also generates answers. The teacher must be measured before
                any other model that does.

        Raises:
            Cancelled: If cancellation was requested; earlier measurements are kept.
        """
        journal = self.job.journal("fidelity")
        if name not in journal:
            self.job.check_cancelled()
            measurement = self._measure(name, load, writes=writes).to_json()
            journal.put(_SKIPPED, {**journal.get(_SKIPPED, {}), **self.passed_over})
            journal.put(name, measurement)
        self.passed_over |= journal.get(_SKIPPED, {})
        return ModelFidelity.from_json(journal[name])

    def _measure(self, name: str, load: Callable[[], Any], *, writes: bool) -> ModelFidelity:
        records = order_records(self.records)[: self.recipe.fidelity.records]
        if not records:
            return ModelFidelity(Fidelity(()), np.zeros((0, 3, NUM_BINS)))
        model = load()
        encoded = self._encode(records, model if self.teacher is None else self.teacher.model)
        teacher = self.teacher.model if self.teacher is not None else None
        writes = writes and bool(self._prompts)
        total = len(records) + (1 if teacher is None else 2) * len(self._prompts) * writes
        with self.job.phase(f"fidelity, {name}", total, "records") as progress:
            comparisons, temperature = compare_distributions(
                model, teacher, encoded, calibrate=True, kept=self._choose_store()
            )
            progress.advance(len(records))
            generated = self._generate(name, model, progress.advance) if writes else {}
        return ModelFidelity(
            Fidelity(tuple(map(RecordFidelity.of, records, comparisons))),
            np.array([row.bins for row in comparisons if row.tokens]).reshape(-1, 3, NUM_BINS),
            temperature,
            tuple(_scale_temperature(row) for row in comparisons if row.scaled_bins is not None),
            depth=bin_by_position([row.kl_by_position for row in comparisons]),
            **generated,
        )

    def _encode(self, records: Sequence[Record], model: Any) -> list[EncodedConversation]:
        """Tokenize once, report truncation and select the records to answer."""
        if self._encoded is None:
            cut: list[int] = []
            limit = self.recipe.max_tokens
            self._encoded = encode_conversations(
                self.tokenizer,
                records,
                max_tokens=limit,
                on_truncated=lambda index, tokens: cut.append(index),
            )
            if cut:
                self.job.warn(f"fidelity: {len(cut)} held-out records truncated to {limit} tokens")
            if self.context is None:
                self._select_prompts(records, model)
            elif self.teacher is not None:
                self._cache_teacher_states(self.context, records, self.teacher.model)
        return self._encoded

    def _select_prompts(self, records: Sequence[Record], model: Any) -> None:
        context = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)
        limit = min(self.recipe.max_tokens, context - self.recipe.fidelity.max_new_tokens)
        for record in records:
            if len(self._prompts) == self.recipe.fidelity.answers:
                break
            messages = record.messages
            if len(messages) < 2 or messages[-1].role != "assistant":
                self._skip("no question before its last answer")
                continue
            text = render_chat(self.tokenizer, messages[:-1], tools=record.tools)
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if not 0 < len(ids) <= limit:
                self._skip("prompt too long to be answered")
                continue
            answer = record.fields.get("answer")
            reference = answer if isinstance(answer, str) and answer else messages[-1].content
            self._prompts.append(_GenerationPrompt(record, ids, reference))

    def _cache_teacher_states(
        self, settings: TeacherContextSettings, records: Sequence[Record], teacher: Any
    ) -> None:
        """Store the teacher's hidden states in context, as the reference of its student.

        A record that cannot be read in context counts no tokens. Answers are not generated, because
        the teacher would have to score them in context, too.
        """
        reader = LogitReader(teacher)
        if not reader.is_chunked:
            self._skip("the teacher's head cannot be put on states that were kept")
            return
        encoded = self._encoded or []
        for index, record in enumerate(records):
            with_context = encode_with_context(settings, self.tokenizer, record, encoded[index])
            if with_context is None:
                self._skip("no context that fits, or other tokens in it")
                encoded[index] = EncodedConversation(
                    encoded[index].ids, (False,) * len(encoded[index].ids)
                )
                continue
            positions = torch.tensor(with_context.targets[: len(encoded[index].targets)]) - 1
            with torch.inference_mode():
                self._cached_states[index] = reader.pick(
                    reader.hidden([with_context]), 0, positions
                )

    def _skip(self, reason: str) -> None:
        self.passed_over[reason] = self.passed_over.get(reason, 0) + 1

    def _choose_store(self) -> CachedStates | None:
        """Return the store of the teacher's hidden states; None if they are too large."""
        if self._cached_states or self.teacher is None:
            return self._cached_states
        hidden = int(getattr(self.teacher.model.config, "hidden_size", 0) or 0)
        counted = sum(len(record.targets) for record in self._encoded or ())
        return self._cached_states if 0 < 4 * hidden * counted <= _MAX_CACHED_BYTES else None

    def _generate(self, name: str, model: Any, advance: Callable[[int], None]) -> dict[str, Any]:
        """Generate answers; with a teacher, also compare both models on sampled text."""
        prompts = [prompt.ids for prompt in self._prompts]
        answers = tuple(
            GeneratedAnswer(
                prompt.record.id,
                str(self.tokenizer.decode(list(continuation.ids), skip_special_tokens=True)),
                prompt.reference,
                continuation.ids,
                continuation.has_ended,
            )
            for prompt, continuation in zip(
                self._prompts, self._complete(model, prompts, 0.0, advance), strict=True
            )
        )
        if self.teacher is None:
            return {"answers": answers}
        sampled = tuple(
            continuation.ids for continuation in self._complete(model, prompts, 1.0, advance)
        )
        if name == TEACHER:
            return {"answers": answers, "sampled": sampled}
        teacher_samples = ModelFidelity.from_json(self.job.journal("fidelity")[TEACHER]).sampled
        teacher = self.teacher.model
        free, forced = (
            self._compare_by_depth(model, teacher, prompts, texts)
            for texts in (sampled, teacher_samples)
        )
        return {"answers": answers, "sampled": sampled, "free": free, "forced": forced}

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

    def _compare_by_depth(
        self,
        model: Any,
        teacher: Any,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
    ) -> tuple[Any, ...]:
        encoded = [
            EncodedConversation((*prompt, *text), (False,) * len(prompt) + (True,) * len(text))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        comparisons, _ = compare_distributions(model, teacher, encoded)
        return tuple(row.kl_by_position for row in comparisons)


def _scale_temperature(row: DistributionMetrics) -> TemperatureScaled:
    bins = np.zeros((3, NUM_BINS)) if row.scaled_bins is None else row.scaled_bins
    return TemperatureScaled(
        row.tokens,
        row.scaled_loss or 0.0,
        row.scaled_brier or 0.0,
        tuple(map(tuple, bins.tolist())),
        tuple(map(tuple, row.bins.tolist())),
    )


TIMINGS = "timings"
_TIMES = (("reading 128 tokens", "prefill_ms"), ("writing a token", "decode_ms"))


def measure_timings(job: Job, folders: Mapping[str, Path]) -> dict[str, SpeedResult]:
    """Measure the speed of each checkpoint, one at a time and once per job."""
    journal = job.journal("speed")
    with job.phase("speed", len(folders), "models") as progress:
        for name, folder in folders.items():
            job.check_cancelled()
            if name not in journal:
                journal.put(name, asdict(measure_model_speed(folder)))
            progress.advance()
    return {name: SpeedResult(**journal[name]) for name in folders}


def write_timings(job: Job, speeds: Mapping[str, SpeedResult], *, seed: int) -> Report:
    """Write timings.json and timings.html into the job's folder, next to the output."""
    report, names = Report("Latency and memory"), list(speeds)
    lines = []
    for label, key in _TIMES:
        for name, speed in speeds.items():
            values = getattr(speed, key)
            report.add(
                bootstrap(values, statistic="median", seed=seed, name=f"{name}/{key}", unit="ms"),
                is_headline=key == "decode_ms",
            )
        lines.append((label, "ms", tuple(f"{name}/{key}" for name in names)))
    for name, speed in speeds.items():
        if speed.peak_bytes:
            report.add(
                Metric(f"{name}/peak_bytes", float(speed.peak_bytes), unit="B", note="seen once")
            )
    lines.append(("peak memory", "B", tuple(f"{name}/peak_bytes" for name in names)))
    kinds = ", ".join(f"{name} in {speed.dtype}" for name, speed in speeds.items())
    report.section(
        "Side by side",
        f"One prompt at a time, five times after a first that is not counted: {kinds}. Medians; "
        "peak memory is what loading, reading and writing held above what the process held "
        "before. Other work on the machine shows in these figures.",
        metrics=list(report.metrics.values()),
        grid=ComparisonTable("Latency and memory", tuple(names), tuple(lines)),
        plot=Plot.of(
            "Milliseconds to write one token",
            [report.metrics[f"{name}/decode_ms"] for name in names],
            labels=names,
            kind="bars",
        ),
    )
    with atomic_write(job.work / f"{TIMINGS}.json") as file:
        json.dump(report.to_json(), file, ensure_ascii=False, indent=1)
    with atomic_write(job.work / f"{TIMINGS}.html") as file:
        file.write(render_page(report.to_json()))
    return report
