"""Training run of a sentence reader; sets the no-answer threshold by calibration on held-out data.

Source of the calibration: Platt 1999 (a logistic function of the margin); Kamath et al. 2020,
"Selective Question Answering under Domain Shift", arXiv:2006.09462 (fitted on questions from
documents that were not trained on).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError, count_noun
from stillroom.evaluate.metrics.bootstrap import MIN_UNITS
from stillroom.evaluate.metrics.calibration import fit_logistic_weights
from stillroom.evaluate.qa.judgments import JUDGMENTS_ROLE, are_judgments
from stillroom.evaluate.qa.questions import HELD_OUT_FILE, JudgedQuestion, read_question_set
from stillroom.jobs import atomic_write
from stillroom.models.embedders.sentence import not_embedder_error
from stillroom.models.encoders.text_encoder import load_encoder
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.local.causal_lm import choose_device
from stillroom.provenance import ARTIFACT_FILE, Parent, digest_json, digest_text, make_parent
from stillroom.rag.answer_selection.adapted_bert import (
    describe_base,
    find_special_tokens,
    open_base,
)
from stillroom.rag.answer_selection.examples import (
    ReaderExample,
    ReaderPassage,
    label_passages,
    make_examples,
    read_passage,
    read_split_questions,
)
from stillroom.rag.answer_selection.judging import (
    HeldOutScores,
    Readings,
    compare_readers,
    describe_training,
    partition_readings,
)
from stillroom.rag.answer_selection.overlap import QuestionOverlap, ScoredSentence
from stillroom.rag.answer_selection.reader import (
    CONFIG_FILE,
    FEATURES,
    WEIGHTS_FILE,
    SentenceReader,
    find_reader,
)
from stillroom.rag.answer_selection.training import ReaderNetwork, build_source, compute_loss
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.records import Hit, Link, Origin
from stillroom.text.unicode import normalize_text
from stillroom.train.loop import train
from stillroom.train.precision import limit_threads

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.jobs.reader import ReaderRecipe

__all__ = ["train_reader"]

_SPARE_HITS = 12
_EVIDENCE_HITS = 3
_MAX_EVIDENCE = 1000  # characters
_OVERLAP_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
_SHORT_WEIGHTS = (0.0, 0.2, 0.5)
_RANK_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)
_LOGIT_ALONE = {"overlap": 0.0, "short": 0.0, "rank": 0.0}
_OVERLAP_ALONE = {"overlap": 1e6, "short": 0.0, "rank": 0.0}


@dataclass(frozen=True, slots=True)
class _RetrievedQuestion:
    """A question with its hits, and the document that answers it (empty if none was found).

    ``is_held_out`` tells what a records artifact decided; None leaves it to ``_split``.
    """

    question: JudgedQuestion
    hits: list[Hit]
    document: str
    is_held_out: bool | None


def train_reader(recipe: ReaderRecipe, job: Job) -> Artifact:
    """Run the job ``rag.reader``; see ``stillroom.rag.jobs.reader.run``."""
    retrieved = _retrieve(recipe, job)
    training, held_out = _split(retrieved, recipe.validation, recipe.max_validation, recipe.seed)
    found = [entry for entry in training if entry.document or not entry.question.is_answerable]
    lost, training = len(training) - len(found), found
    if not training:
        raise DataError(
            "no question is left to train on",
            code="data.no-questions",
            where="questions",
            expected=f"more than the {len(held_out)} held out, with their evidence in the index",
            next="add questions, or lower validation",
        )
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
        f"{count_noun(len(training), 'question')} for training, "
        f"{sum(not entry.question.is_answerable for entry in training)} of them without an answer; "
        f"{answerable} of {len(examples)} examples with an "
        f"answer in their passages; {len(held_out)} held out; {lost} left out, whose evidence was "
        "not found"
    )
    with limit_threads(recipe.train.threads):
        trained = _fit(recipe, examples, job)
    reader = SentenceReader(job.output)
    readings = _read_held_out(reader, recipe, held_out, "the trained reader", job)
    config = reader.config
    if recipe.start is None:
        config = config | _calibrate(held_out, readings, recipe.silent, job)
        _write_config(job.output, config)
    chosen: dict[str, Any] = {"validation": _describe(held_out, readings, config)}
    if recipe.start is not None:
        chosen |= _choose(recipe, held_out, readings, job)
    _write_held_out(held_out, job)
    parents = [
        make_parent("index", Path(recipe.index), job.out),
        *(make_parent(_name_role(Path(path)), Path(path), job.out) for path in recipe.questions),
        describe_base(recipe.base),
        *([_describe_start(recipe.start, job)] if recipe.start is not None else []),
    ]
    details = {"train": trained, "reader": True, "questions": len(retrieved), **chosen}
    if line := describe_training(parents, details):
        job.say(line, kind="choice")
    origin = Origin("synthetic").then(Link("rag.reader")).to_json()
    return job.finish("checkpoint", parents=parents, origin=origin, details=details)


def _describe_start(reference: str, job: Job) -> Parent:
    path = Path(reference)
    if (path / ARTIFACT_FILE).is_file():
        return make_parent("start", path, job.out)
    return Parent("start", reference, SentenceReader(find_reader(reference)).fingerprint)


def _choose(
    recipe: ReaderRecipe,
    held_out: Sequence[_RetrievedQuestion],
    trained: Sequence[Readings],
    job: Job,
) -> dict[str, Any]:
    """Keep the trained reader if it is better on the held-out questions, else its start.

    A trained reader is written as it was compared: as often silent without an answer as its start.

    Returns:
        What was kept, the comparison, and the figures of what was kept.
    """
    start = find_reader(str(recipe.start))
    reader = SentenceReader(start)
    before = _read_held_out(reader, recipe, held_out, "the initial reader", job)
    compared = compare_readers(
        [entry.question for entry in held_out], before, trained, reader.config
    )
    is_better = compared.difference.side() > 0
    if is_better:
        config = json.loads((job.output / CONFIG_FILE).read_bytes()) | compared.settings
        _write_config(job.output, config)
        if compared.silences < MIN_UNITS:
            job.warn(
                f"the shift of the probability rests on {compared.silences} questions without any "
                "document that answers; with more documents and questions it is better founded"
            )
    else:
        config = reader.config
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            with atomic_write(job.output / name, "wb") as file:
                file.write((start / name).read_bytes())
    if compared.shift:
        job.say(
            f"{compared.shift:+.2f} was added to the logit of the trained reader's probability, as "
            f"measured on {count_noun(compared.silences, 'reading')} without an answer"
        )
    return {
        "kept": "trained" if is_better else "start",
        "comparison": compared.to_json(),
        "validation": _describe(held_out, trained if is_better else before, config),
    }


def _write_held_out(held_out: Sequence[_RetrievedQuestion], job: Job) -> None:
    """Write the questions that were not trained on, so that an evaluation can ask them."""
    with atomic_write(job.output / HELD_OUT_FILE) as file:
        for entry in held_out:
            file.write(json.dumps(entry.question.to_json(), ensure_ascii=False) + "\n")


def _retrieve(recipe: ReaderRecipe, job: Job) -> list[_RetrievedQuestion]:
    paths = list(map(Path, recipe.questions))
    rows = list(read_split_questions(paths, job.warn))
    judges = [one for path in recipe.without for one in read_question_set(Path(path), every=True)]
    asked = {normalize_text(one.text) for one in judges}
    quotes = [quote for one in judges for quote in _list_quotes(one)]
    judged = {number for number, path in enumerate(paths) if quotes and _holds_judgments(path)}
    every = [(question, is_held_out) for _, question, is_held_out in rows]
    found = [
        (question, is_held_out)
        for number, question, is_held_out in rows
        if normalize_text(question.text) not in asked
        and not (number in judged and _share_sentence(_list_quotes(question), quotes))
    ]
    if len(found) < len(every):
        left_out = count_noun(len(every) - len(found), "question is", "questions are")
        job.warn(
            f"{left_out} left out, since they judge the reader, or are judgments of the same "
            "sentence in other words"
        )
    every = found
    # A question without an answer needs no evidence: whatever is retrieved does not answer it.
    questions = [row for row in every if row[0].evidence or not row[0].is_answerable]
    if len(questions) < len(every):
        job.warn(
            f"{len(every) - len(questions)} of {len(every)} questions are left out, since they "
            "have an answer without evidence"
        )
    retrieved = []
    with (
        Index.open(Path(recipe.index)) as index,
        job.phase("retrieve", len(questions), "questions") as progress,
    ):
        for question, is_held_out in questions:
            job.check_cancelled()
            hits = retrieve(index, question.text, recipe.k + _SPARE_HITS)
            labeled = label_passages(question, map(read_passage, hits))
            if question.evidence and not any(any(passage.answers) for passage in labeled):
                hits += _find_evidence(index, question)
                labeled = label_passages(question, map(read_passage, hits))
            documents = [
                hit.passage.document_id
                for hit, passage in zip(hits, labeled, strict=True)
                if any(passage.answers)
            ]
            document = documents[0] if documents else ""
            retrieved.append(_RetrievedQuestion(question, hits, document, is_held_out))
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


def _find_evidence(index: Index, question: JudgedQuestion) -> list[Hit]:
    """Return a passage that answers, found by its own words, or none.

    What a search for the question misses is what a reader has the most to learn from.
    """
    for part in question.evidence:
        # Without what a query would take for a phrase or a field.
        for hit in retrieve(index, normalize_text(part.quote)[:_MAX_EVIDENCE], _EVIDENCE_HITS):
            (passage,) = label_passages(question, [read_passage(hit)])
            if any(passage.answers):
                return [hit]
    return []


def _holds_judgments(path: Path) -> bool:
    return path.is_file() and are_judgments(path.read_text(encoding="utf-8"))


def _name_role(path: Path) -> str:
    return JUDGMENTS_ROLE if _holds_judgments(path) else "questions"


def _list_quotes(question: JudgedQuestion) -> list[str]:
    quotes = (normalize_text(part.quote) for part in question.evidence)
    return [f" {quote} " for quote in quotes if quote]


def _share_sentence(quotes: Sequence[str], others: Sequence[str]) -> bool:
    """Return whether a quote holds one of the others, or stands in it."""
    return any(one in other or other in one for one in quotes for other in others)


def _split(
    retrieved: Sequence[_RetrievedQuestion], share: float, most: int, seed: int
) -> tuple[list[_RetrievedQuestion], list[_RetrievedQuestion]]:
    """Split as the records are, and others by document: validation is about other documents."""
    free = [entry for entry in retrieved if entry.is_held_out is None]
    documents = sorted({entry.document for entry in free if entry.document})
    order = sorted(documents, key=lambda name: digest_text(f"{seed}:{name}"))
    held = set(order[: max(1, round(share * len(order)))]) if len(order) > 1 else set()
    # A question without a document was not retrieved: it is held out by itself, as often.
    held_out = [
        entry
        for entry in free
        if (entry.document in held if entry.document else _draw(seed, entry.question.id) < share)
    ]
    names = {entry.question.id for entry in held_out}
    training = [entry for entry in free if entry.question.id not in names]
    if not held:  # one document: its last questions, since nothing else is left
        cut = max(1, round(len(training) * (1 - share)))
        training, held_out = training[:cut], training[cut:]
    training += [entry for entry in retrieved if entry.is_held_out is False]
    held_out += [entry for entry in retrieved if entry.is_held_out]
    held_out.sort(key=lambda entry: digest_text(f"{seed}:{entry.question.id}"))
    return training, held_out[:most]


def _draw(seed: int, name: str) -> float:
    """Return a number in [0, 1) that depends on seed and name alone."""
    return int(digest_text(f"{seed}:{name}")[:8], 16) / 16**8


def _fit(recipe: ReaderRecipe, examples: Sequence[ReaderExample], job: Job) -> dict[str, Any]:
    """Train and write the reader without calibration; return a summary."""
    from safetensors.numpy import save_file

    lora = recipe.train.lora
    folder = resolve_checkpoint(recipe.base)
    plain = open_base(recipe.base)
    device = choose_device("auto")
    network = ReaderNetwork(
        load_encoder(folder, not_embedder_error)[1],
        lora,
        recipe.seed,
    )
    calibrated: dict[str, Any] = {
        "calibration": {name: float(name == "margin") for name in FEATURES},
        "weights": _LOGIT_ALONE,
        "threshold": 0.5,
    }
    if recipe.start is not None:
        start = find_reader(recipe.start)
        network.load(start / CONFIG_FILE, start / WEIGHTS_FILE, base=recipe.base, alpha=lora.alpha)
        before = SentenceReader(start).config
        calibrated = {name: before[name] for name in (*calibrated, "passages") if name in before}
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
    config = {"base": recipe.base, "rank": lora.rank, "alpha": lora.alpha, **calibrated}
    _write_config(job.output, config)
    return asdict(summary)


def _describe(
    held_out: Sequence[_RetrievedQuestion],
    readings: Sequence[Readings],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the figures of a reader on held-out questions.

    ``silent_answerable`` is the share of the questions with an answer in their passages;
    ``silent_unanswerable`` of those that the question set says have none.
    """
    weights, calibration = config["weights"], config["calibration"]
    shown, unanswerable = partition_readings([entry.question for entry in held_out], readings)

    def silent(every: Sequence[HeldOutScores]) -> float | None:
        rows = [scores for scores in every if scores.sentences]
        chances = [scores.probability(weights, calibration) for scores in rows]
        return sum(chance < config["threshold"] for chance in chances) / len(rows) if rows else None

    return {
        "questions": len(shown),
        "retrieved": sum(any(scores.answers) for scores in shown),
        "first": sum(scores.is_first_right(weights) for scores in shown),
        "first_by_logit": sum(scores.is_first_right(_LOGIT_ALONE) for scores in shown),
        "first_by_overlap": sum(scores.is_first_right(_OVERLAP_ALONE) for scores in shown),
        "silent_answerable": silent([scores for scores in shown if any(scores.answers)]),
        "silent_near_miss": silent([near for _, near, _ in readings]),
        "silent_foreign": silent([foreign for _, _, foreign in readings]),
        "silent_unanswerable": silent(unanswerable),
        "weights": weights,
        "threshold": config["threshold"],
    }


def _read_held_out(
    reader: SentenceReader,
    recipe: ReaderRecipe,
    held_out: Sequence[_RetrievedQuestion],
    name: str,
    job: Job,
) -> list[Readings]:
    """Return the scores of each question's three readings; progress tells the reader's name.

    They are: its passages as retrieved; those without an answer (near misses); and those of other
    documents than the ones that answer (foreign).
    """
    readings, journal = [], job.journal("validation")
    keys = [digest_json([reader.fingerprint, entry.question.id]) for entry in held_out]
    done = sum(key in journal for key in keys)
    with (
        Index.open(Path(recipe.index)) as index,
        job.phase(f"validate {name}", len(held_out), "questions", done=done) as progress,
    ):
        for key, entry in zip(keys, held_out, strict=True):
            job.check_cancelled()
            labeled = label_passages(entry.question, map(read_passage, entry.hits))
            documents = [hit.passage.document_id for hit in entry.hits]
            named = {
                document
                for document, part in zip(documents, labeled, strict=True)
                if any(part.answers)
            }
            # A question whose answer was not found at all tells nothing of its absence.
            near = [part for part in labeled if named and not any(part.answers)]
            foreign = [
                part
                for document, part in zip(documents, labeled, strict=True)
                if named and document not in named
            ]
            shown = [parts[: reader.passages] for parts in (labeled, near, foreign)]
            if key not in journal:
                overlap = QuestionOverlap(index, entry.question.text)
                journal.put(
                    key, [_read(reader, overlap, entry.question.text, parts) for parts in shown]
                )
                progress.advance()
            first, second, third = (
                _score(reader, entry.question.text, parts, row)
                for parts, row in zip(shown, journal[key], strict=True)
            )
            readings.append((first, second, third))
    return readings


def _calibrate(
    held_out: Sequence[_RetrievedQuestion], readings: Sequence[Readings], silent: float, job: Job
) -> dict[str, Any]:
    """Return the weights of a score, the calibration and the threshold.

    The threshold silences the given share of the questions without an answer: those of the question
    set, and the others without any passage of the documents that answer.
    """
    shown, unanswerable = partition_readings([entry.question for entry in held_out], readings)
    weights = max(
        (
            {"overlap": overlap, "short": short, "rank": rank}
            for overlap in _OVERLAP_WEIGHTS
            for short in _SHORT_WEIGHTS
            for rank in _RANK_WEIGHTS
        ),
        key=lambda tried: sum(scores.is_first_right(tried) for scores in shown),
    )
    rows = [scores for row in readings for scores in row if scores.sentences]
    if not rows:
        job.warn("no question was held out: the reader is not calibrated, never silent")
        return {"threshold": 0.0}
    features = [scores.describe(weights) for scores in rows]
    # Where answering passages are left out, the others move up: their rank tells nothing.
    names = [name for name in features[0] if name != "rank"]
    labels = np.array([scores.is_first_right(weights) for scores in rows], dtype=np.float64)
    design = np.array([[*(row[name] for name in names), 1.0] for row in features])
    fitted = fit_logistic_weights(design, labels, ridge=1e-3)
    calibration = dict(zip([*names, "intercept"], map(float, fitted), strict=True))
    unanswered = sorted(
        scores.probability(weights, calibration)
        for scores in (*unanswerable, *(foreign for _, _, foreign in readings))
        if scores.sentences
    )
    if len(unanswered) < MIN_UNITS:
        job.warn(
            f"the threshold rests on {len(unanswered)} questions without any document that answers;"
            " with more documents and questions it is better founded"
        )
    position = min(len(unanswered) - 1, round(silent * len(unanswered)))
    return {
        "calibration": {"rank": 0.0}
        | {name: round(value, 6) for name, value in calibration.items()},
        "weights": weights,
        "threshold": round(unanswered[position], 6) if unanswered else 0.0,
    }


def _read(
    reader: SentenceReader,
    overlap: QuestionOverlap,
    question: str,
    passages: Sequence[ReaderPassage],
) -> list[Any]:
    """Return the scored sentences and the logit of no answer, as JSON."""
    reading = reader.read(
        question, [(part.title, part.text, part.sentences) for part in passages], overlap
    )
    return [[asdict(one) for one in reading.sentences], reading.no_answer]


def _score(
    reader: SentenceReader, question: str, passages: Sequence[ReaderPassage], row: Sequence[Any]
) -> HeldOutScores:
    found, no_answer = row
    sentences = [
        ScoredSentence(**fields | {"short": fields["short"] and tuple(fields["short"])})
        for fields in found
    ]
    labels = [dict(zip(part.sentences, part.answers, strict=True)) for part in passages]

    @cache
    def compare(found: ScoredSentence) -> float:
        return reader.compare(question, passages[found.passage].text[found.start : found.end])

    return HeldOutScores(
        sentences,
        [labels[found.passage][found.start, found.end] for found in sentences],
        no_answer,
        compare,
    )


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    with atomic_write(folder / CONFIG_FILE) as file:
        json.dump(config, file, indent=1, sort_keys=True)
        file.write("\n")
