"""What does each signal of the packaged reader add? It is taken out, and the rest stays.

``python -m benchmarks.reader.ablation NAME=INDEX,QUESTIONS ... --work FOLDER [--limit 240]
[--others 100]`` reads each question once in three ways (passages as served; without their headings;
every sentence alone, without its neighbors), keeps the readings in FOLDER, and scores them again
without one signal. ``first``: the best sentence holds an accepted answer, word for word; ``holds``:
up to three quotes do, before sentences are joined. Silence: the probability's features are fitted
to the readings of the other sets, with and without one of them. ``area`` tells questions whose
passages hold an answer from the set's open ones and from those of the other sets; ``silent`` is the
share of these that is silenced where a tenth of the former is. Differences are paired over
questions, with 95 % intervals.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.evaluate import paired_difference
from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.metrics.calibration import fit_logistic_weights
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.provenance import digest_text
from stillroom.rag import Index, retrieve
from stillroom.rag.answer_selection.encoding import Span
from stillroom.rag.answer_selection.examples import read_passage
from stillroom.rag.answer_selection.overlap import QuestionOverlap, Reading, ScoredSentence
from stillroom.rag.answer_selection.reader import (
    BUILTIN_READER,
    READ_PASSAGES,
    SentenceReader,
    describe_reading,
    find_reader,
)
from stillroom.rag.answer_strategies.quote import Quote

Passages = list[tuple[str, str, Sequence[Span]]]
Row = dict[str, Any]
RESAMPLES = 2000
SILENT_ANSWERABLE = 0.1
SIGNALS = {"network": ("logit",), "short": ("short",), "network and short": ("logit", "short"),
           "overlap": ("overlap",), "rank": ("rank",)}  # fmt: skip
WAYS = ("whole", "without headings", "without neighbors")
FEATURES = ("margin", "short", "no_answer", "cosine", "rank")


def main() -> None:
    """Read what was not read, and print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=240, help="answerable questions of a set")
    parser.add_argument("--others", type=int, default=100, help="open ones, and of other sets")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    reader = SentenceReader(find_reader(BUILTIN_READER))
    sets = {}
    for text in options.sets:
        name, _, paths = text.partition("=")
        index, _, questions = paths.partition(",")
        sets[name] = (Path(index), read_question_set(Path(questions)))
    rows = []
    for name, (path, questions) in sets.items():
        others = [one for key, (_, rest) in sets.items() if key != name for one in rest]
        asked = {
            "answerable": draw([one for one in questions if one.is_answerable], options.limit),
            "open": draw([one for one in questions if not one.is_answerable], options.others),
            "foreign": draw([one for one in others if one.is_answerable], options.others),
        }
        rows += read_set(options.work / f"{name}.jsonl", name, path, asked, reader)
    compare_scores(rows, reader)
    compare_probabilities(rows)


def draw(questions: list[JudgedQuestion], most: int) -> list[JudgedQuestion]:
    """Return at most so many questions; those of a smaller number are the first of a larger one."""
    return sorted(questions, key=lambda one: digest_text(one.text))[:most]


def read_set(
    cache: Path,
    name: str,
    path: Path,
    asked: dict[str, list[JudgedQuestion]],
    reader: SentenceReader,
) -> list[Row]:
    """Return the readings of a set's questions; those in the file are not made again."""
    lines = cache.read_text(encoding="utf-8").splitlines() if cache.is_file() else []
    known = {(row["kind"], row["question"]): row for row in map(json.loads, lines)}
    rows = []
    with Index.open(path) as index, cache.open("a", encoding="utf-8") as file:
        for kind, questions in asked.items():
            for question in questions:
                row = known.get((kind, question.text))
                if row is None:
                    row = {"set": name, "kind": kind, "question": question.text}
                    row |= read_question(index, question, reader, is_whole=kind != "answerable")
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                rows.append(row)
    return rows


def read_question(
    index: Index, question: JudgedQuestion, reader: SentenceReader, *, is_whole: bool
) -> Row:
    """Read a question's passages as served, and unless ``is_whole`` with less around a sentence."""
    hits = retrieve(index, question.text, READ_PASSAGES)
    shown = [read_passage(hit) for hit in hits]
    whole: Passages = [(one.title, one.text, one.sentences) for one in shown]
    ways = {"whole": (whole, list(range(len(whole))))}
    if not is_whole:
        bare: Passages = [("", text, spans) for _, text, spans in whole]
        ways[WAYS[1]] = (bare, ways["whole"][1])
        alone = [
            (number, (title, text[start:end], ((0, end - start),)))
            for number, (title, text, spans) in enumerate(whole)
            for start, end in spans
        ]
        ways[WAYS[2]] = ([part for _, part in alone], [number for number, _ in alone])
    overlap = QuestionOverlap(index, question.text)
    readings = {}
    for way, (passages, ranks) in ways.items():
        reading = reader.read(question.text, passages, overlap)
        readings[way] = describe(reading, passages, ranks, question.answers)
        if way == "whole":
            best = reading.sentences[0]
            text = whole[best.passage][1][best.start : best.end]
            cosine = reader.compare(question.text, text)
            features = describe_reading(reading.sentences, reading.no_answer, cosine)
            is_right = bool(question.answers) and contains_answer(text, question.answers)
    held = any(contains_answer(text, question.answers) for _, text, _ in whole)
    return {"held": held, "right": is_right, "readings": readings, "features": features}


def describe(
    reading: Reading, passages: Passages, ranks: Sequence[int], answers: Sequence[str]
) -> list[Row]:
    """Return the signals of the sentences, in the order of the passages."""
    rows = []
    for one in sorted(reading.sentences, key=lambda one: (one.passage, one.start)):
        text = passages[one.passage][1][one.start : one.end]
        signals = {"logit": one.logit, "overlap": one.overlap, "short": one.short_logit}
        is_right = bool(answers) and contains_answer(text, answers)
        rows.append({"text": text, "right": is_right, "rank": ranks[one.passage], **signals})
    return rows


def judge(sentences: list[Row], weights: dict[str, float]) -> dict[str, float]:
    """Return whether the first sentence, and up to three, are right by these weights."""
    scored = sorted(
        (
            ScoredSentence(
                number, 0, len(one["text"]), one["logit"], one["overlap"],
                sum(weight * one[name] for name, weight in weights.items()),
            )
            for number, one in enumerate(sentences)
        ),
        key=lambda one: (-one.score, one.passage),
    )  # fmt: skip
    texts = [one["text"] for one in sentences]
    chosen = Quote.model_validate({})._choose(scored, texts)
    return {
        "first": float(sentences[scored[0].passage]["right"]),
        "holds": float(any(sentences[one.passage]["right"] for one in chosen)),
        "words": float(sum(len(texts[one.passage].split()) for one in chosen)),
    }


def compare_scores(rows: list[Row], reader: SentenceReader) -> None:
    """Print what is found with all signals of the score, and without each."""
    settings = reader.config["weights"]
    full = {"logit": 1.0, "overlap": settings["overlap"], "short": settings["short"],
            "rank": -settings["rank"]}  # fmt: skip
    arms = {"all": ("whole", full)}
    for name, left_out in SIGNALS.items():
        kept = {key: weight for key, weight in full.items() if key not in left_out}
        arms[f"without {name}"] = ("whole", kept)
    arms |= {way: (way, full) for way in WAYS[1:]}
    asked = [row for row in rows if row["kind"] == "answerable"]
    judged = {
        arm: [judge(row["readings"][way], weights) for row in asked]
        for arm, (way, weights) in arms.items()
    }
    names = list(dict.fromkeys(row["set"] for row in asked))
    for name in (*names, "+".join(names)):
        part = [at for at, row in enumerate(asked) if name in (row["set"], "+".join(names))]
        held = np.mean([asked[at]["held"] for at in part])
        show(name, "passages", "holds", held, n=len(part), minus_all=None)
        for arm, found in judged.items():
            for figure in ("first", "holds", "words"):
                values, start = (
                    [every[at][figure] for at in part] for every in (found, judged["all"])
                )
                gap = paired_difference(values, start, name=figure)
                told = None if arm == "all" else (gap.value, gap.low, gap.high)
                show(name, arm, figure, np.mean(values), n=len(part), minus_all=told)


def compare_probabilities(rows: list[Row]) -> None:
    """Print how well the probability tells an answer from none, with each feature left out."""
    judged = [row for row in rows if row["kind"] != "answerable" or row["held"]]
    sets, kinds = (np.array([row[key] for row in judged]) for key in ("set", "kind"))
    labels = kinds == "answerable"
    arms = {"all": FEATURES} | {
        f"without {name}": tuple(key for key in FEATURES if key != name) for name in FEATURES
    }
    scores = {arm: fit_others(judged, names) for arm, names in arms.items()}
    names = [(name, sets == name) for name in dict.fromkeys(sets)]
    for name, inside in [*names, ("+".join(name for name, _ in names), labels == labels)]:
        for kind in ("open", "foreign"):
            kept = inside & (labels | (kinds == kind))
            if labels[kept].all():
                continue
            for arm, found in scores.items():
                at, told = measure(labels[kept], found[kept]), None
                if arm != "all":
                    told = resample(labels[kept], found[kept], scores["all"][kept])
                for place, figure in enumerate(("area", "silent")):
                    gap = told[:, place].tolist() if told is not None else None
                    n = int((~labels[kept]).sum())
                    show(name, arm, f"{kind}/{figure}", at[place], n=n, minus_all=gap)


def fit_others(rows: list[Row], names: Sequence[str]) -> NDArray[np.float64]:
    """Return each row's score by a fit of some features to the rows of the other sets.

    The label is that the best sentence is right; with one set alone the fit is to that one.
    """
    design = np.array([[*(row["features"][name] for name in names), 1.0] for row in rows])
    right = np.array([float(row["right"]) for row in rows])
    sets = np.array([row["set"] for row in rows])
    scores = np.zeros(len(rows))
    for name in np.unique(sets):
        others = sets != name if (sets != name).any() else sets == name
        weights = fit_logistic_weights(design[others], right[others], ridge=1e-3)
        scores[sets == name] = design[sets == name] @ weights
    return scores


def measure(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area, and the share silenced where a tenth of the answerable is silenced."""
    ours, theirs = scores[labels], scores[~labels]
    order = np.sort(ours)
    above = len(ours) - np.searchsorted(order, theirs, "right")
    ties = np.searchsorted(order, theirs, "right") - np.searchsorted(order, theirs, "left")
    area = float((above + ties / 2).mean() / len(ours))
    return np.array([area, float((theirs < np.quantile(ours, SILENT_ANSWERABLE)).mean())])


def resample(
    labels: NDArray[np.bool_], scores: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return by how much both figures differ from those of ``start``, and the interval's ends."""
    rng = np.random.default_rng(0)
    sides = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    gaps = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rng.choice(side, len(side)) for side in sides])
        gaps.append(measure(labels[drawn], scores[drawn]) - measure(labels[drawn], start[drawn]))
    found = measure(labels, scores) - measure(labels, start)
    return np.stack([found, *np.quantile(gaps, [0.025, 0.975], axis=0)])


def show(
    name: str, arm: str, figure: str, value: Any, *, n: int, minus_all: Sequence[float] | None
) -> None:
    """Print a figure as one line of JSON, with its paired difference from all signals."""
    row = {"name": f"{name}/{arm}/{figure}", "value": round(float(value), 3), "n": n}
    if minus_all is not None:
        row["minus_all"] = [round(float(one), 3) for one in minus_all]
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
