"""Training run of a sentence reader: retrieve, train, calibrate on held-out documents, write.

Source of the calibration: Platt 1999 (a logistic function of the margin); Kamath et al. 2020,
"Selective Question Answering under Domain Shift", arXiv:2006.09462 (fitted on questions from
documents that were not trained on).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.jobs import atomic_write
from stillroom.models.embedders.sentence import load_encoder
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.local.causal_lm import choose_device
from stillroom.provenance import digest_text, make_parent
from stillroom.rag.answer_selection.examples import (
    ReaderExample,
    ReaderPassage,
    label_passages,
    make_examples,
    read_passage,
)
from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.answer_selection.reader import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SentenceReader,
    find_reader,
    find_special_tokens,
    open_base,
)
from stillroom.rag.answer_selection.training import ReaderNetwork, build_source, compute_loss
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.records import Hit, Link, Origin
from stillroom.train.loop import train
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.jobs.reader import ReaderRecipe

__all__ = ["train_reader"]

_SPARE_HITS = 3
_NEWTON_STEPS = 50
_OVERLAP_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
_OVERLAP_ALONE = 1e6


@dataclass(frozen=True, slots=True)
class _RetrievedQuestion:
    """A question with its hits, and the document that answers it (empty if none was found)."""

    question: JudgedQuestion
    hits: list[Hit]
    document: str


def train_reader(recipe: ReaderRecipe, job: Job) -> Artifact:
    """Run the job ``rag.reader``; see ``stillroom.rag.jobs.reader.run``."""
    retrieved = _retrieve(recipe, job)
    training, held_out = _split(retrieved, recipe.validation, recipe.max_validation, recipe.seed)
    # One rendering for each pass over the questions, so that no pass repeats another's passages.
    steps = recipe.train.count_steps(len(training))
    renderings = max(1, math.ceil(steps * recipe.train.batch_size / len(training)))
    examples = make_examples(
        [entry.question for entry in training],
        [entry.hits for entry in training],
        k=recipe.k,
        unanswerable=recipe.unanswerable,
        renderings=renderings,
        seed=recipe.seed,
    )
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})
    answerable = sum(example.is_answerable for example in examples)
    job.say(
        f"{len(training)} questions for training, {answerable} of {len(examples)} examples with an "
        f"answer in their passages; {len(held_out)} about other documents for validation"
    )
    with limit_threads(recipe.train.threads):
        trained = _fit(recipe, examples, job)
    figures = _validate(recipe, held_out, job)
    return job.finish(
        "checkpoint",
        parents=[
            make_parent("index", Path(recipe.index), job.out),
            *(make_parent("questions", Path(path), job.out) for path in recipe.questions),
        ],
        origin=Origin("synthetic").then(Link("rag.reader")).to_json(),
        details={"train": trained, "validation": figures, "reader": True},
    )


def _retrieve(recipe: ReaderRecipe, job: Job) -> list[_RetrievedQuestion]:
    questions = [
        replace(question, id=f"{number}:{question.id}")
        for number, path in enumerate(recipe.questions)
        for question in read_question_set(Path(path))
        if question.is_answerable and question.evidence
    ]
    retrieved = []
    with (
        Index.open(Path(recipe.index)) as index,
        job.phase("retrieve", len(questions), "questions") as progress,
    ):
        for question in questions:
            job.check_cancelled()
            hits = retrieve(index, question.text, recipe.k + _SPARE_HITS)
            labeled = label_passages(question, map(read_passage, hits))
            documents = [
                hit.passage.document_id
                for hit, passage in zip(hits, labeled, strict=True)
                if any(passage.answers)
            ]
            retrieved.append(_RetrievedQuestion(question, hits, documents[0] if documents else ""))
            progress.advance()
    if not any(entry.document for entry in retrieved):
        raise DataError(
            "no question has its evidence in a passage of the index",
            code="rag.no-evidence",
            where=recipe.index,
            expected="questions whose evidence quotes the indexed documents",
            next="check that the questions are about this index",
        )
    return retrieved


def _split(
    retrieved: Sequence[_RetrievedQuestion], share: float, most: int, seed: int
) -> tuple[list[_RetrievedQuestion], list[_RetrievedQuestion]]:
    """Split by document, so that validation questions are about other documents."""
    documents = sorted({entry.document for entry in retrieved if entry.document})
    order = sorted(documents, key=lambda name: digest_text(f"{seed}:{name}"))
    held = set(order[: max(1, round(share * len(order)))]) if len(order) > 1 else set()
    training = [entry for entry in retrieved if entry.document not in held]
    held_out = [entry for entry in retrieved if entry.document in held]
    if not held:  # one document: its last questions, since nothing else is left
        cut = max(1, round(len(training) * (1 - share)))
        training, held_out = training[:cut], training[cut:]
    held_out.sort(key=lambda entry: digest_text(f"{seed}:{entry.question.id}"))
    return training, held_out[:most]


def _fit(recipe: ReaderRecipe, examples: Sequence[ReaderExample], job: Job) -> dict[str, Any]:
    """Train and write the reader without calibration; return a summary."""
    from safetensors.numpy import save_file

    lora = recipe.train.lora
    folder = resolve_checkpoint(recipe.base)
    plain = open_base(recipe.base)
    device = choose_device("auto")
    network = ReaderNetwork(
        load_encoder(folder, "cpu")[1],
        lora,
        recipe.seed,
    )
    if recipe.start is not None:
        network.load(find_reader(recipe.start), base=recipe.base)
    network.to(device)
    source = build_source(
        examples,
        plain.tokenizer,
        special=find_special_tokens(plain.tokenizer),
        max_tokens=plain.max_positions,
        batch_size=recipe.train.batch_size,
        micro_tokens=recipe.train.micro_tokens,
        seed=recipe.seed,
        device=device,
    )
    summary = train(network, source, compute_loss, recipe.train, job, seed=recipe.seed)
    save_file(network.export(), job.output / WEIGHTS_FILE)
    _write_config(
        job.output,
        {
            "base": recipe.base,
            "rank": lora.rank,
            "alpha": lora.alpha,
            "calibration": {"slope": 1.0, "intercept": 0.0},
            "overlap_weight": 0.0,
            "threshold": 0.5,
        },
    )
    return asdict(summary)


def _validate(
    recipe: ReaderRecipe, held_out: Sequence[_RetrievedQuestion], job: Job
) -> dict[str, Any]:
    """Measure the reader on held-out questions, and write its calibration and threshold.

    Each question is read twice: with its passages as retrieved, and with those removed that answer.
    """
    reader = SentenceReader(job.output)
    readings: list[tuple[_Scores, _Scores]] = []
    with (
        Index.open(Path(recipe.index)) as index,
        job.phase("validate", len(held_out), "questions") as progress,
    ):
        for entry in held_out:
            job.check_cancelled()
            labeled = label_passages(entry.question, map(read_passage, entry.hits))
            others = [passage for passage in labeled if not any(passage.answers)]
            readings.append(
                (
                    _score(reader, index, entry.question.text, labeled[: recipe.k]),
                    _score(reader, index, entry.question.text, others[: recipe.k]),
                )
            )
            progress.advance()
    answerable = [shown for shown, _ in readings]
    weight = max(
        _OVERLAP_WEIGHTS,
        key=lambda value: (sum(scores.is_first_right(value) for scores in answerable), -value),
    )
    margins = [scores.margin(weight) for scores in answerable]
    silent_margins = [others.margin(weight) for _, others in readings if others.logits]
    is_right = [scores.is_first_right(weight) for scores in answerable]
    slope, intercept = _fit_logistic(
        np.array([*margins, *silent_margins]),
        np.array([*is_right, *([False] * len(silent_margins))], dtype=np.float64),
    )
    ranked = sorted(silent_margins)
    cut = ranked[min(len(ranked) - 1, round(recipe.silent * len(ranked)))] if ranked else 0.0
    threshold = 1 / (1 + math.exp(-(slope * cut + intercept)))
    config = json.loads((job.output / CONFIG_FILE).read_bytes())
    config |= {
        "calibration": {"slope": round(slope, 6), "intercept": round(intercept, 6)},
        "overlap_weight": weight,
        "threshold": round(threshold, 6),
    }
    _write_config(job.output, config)
    return {
        "questions": len(answerable),
        "retrieved": sum(any(scores.answers) for scores in answerable),
        "first": sum(is_right),
        "first_without_overlap": sum(scores.is_first_right(0.0) for scores in answerable),
        "first_by_overlap": sum(scores.is_first_right(_OVERLAP_ALONE) for scores in answerable),
        "unanswerable": len(silent_margins),
        "silent_answerable": sum(margin <= cut for margin in margins) / max(1, len(margins)),
        "overlap_weight": weight,
        "threshold": config["threshold"],
    }


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of the sentences shown with a question, and which of them answer."""

    logits: list[float]
    overlaps: list[float]
    answers: list[bool]
    no_answer: float

    def joined(self, weight: float) -> list[float]:
        return [
            logit + weight * shared
            for logit, shared in zip(self.logits, self.overlaps, strict=True)
        ]

    def is_first_right(self, weight: float) -> bool:
        joined = self.joined(weight)
        return bool(joined) and self.answers[joined.index(max(joined))]

    def margin(self, weight: float) -> float:
        return max(self.joined(weight)) - self.no_answer if self.logits else -30.0


def _score(
    reader: SentenceReader, index: Index, question: str, passages: Sequence[ReaderPassage]
) -> _Scores:
    reading = reader.read(
        question,
        [(part.title, part.text, part.sentences) for part in passages],
        QuestionOverlap(index, question),
    )
    labels = [dict(zip(part.sentences, part.answers, strict=True)) for part in passages]
    return _Scores(
        [found.logit for found in reading.sentences],
        [found.overlap for found in reading.sentences],
        [labels[found.passage][found.start, found.end] for found in reading.sentences],
        reading.no_answer,
    )


def _fit_logistic(
    values: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> tuple[float, float]:
    """Return slope and intercept of the probability of a label, by Newton's method."""
    design = np.stack([values, np.ones_like(values)], axis=1)
    weights = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        spread = chances * (1 - chances)
        hessian = design.T @ (design * spread[:, None]) + 1e-3 * np.eye(2)
        weights += np.linalg.solve(hessian, design.T @ (labels - chances) - 1e-3 * weights)
    return float(weights[0]), float(weights[1])


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    with atomic_write(folder / CONFIG_FILE) as file:
        json.dump(config, file, indent=1, sort_keys=True)
        file.write("\n")
