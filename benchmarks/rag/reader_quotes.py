"""Does a quoted sentence hold the answer? Readers beside shared words, from the same passages.

For each set ``NAME=INDEX,QUESTIONS`` every answerable question is asked as ``ask`` does, with each
reader and without a threshold. ``holds`` is the share whose text holds an accepted answer word for
word: of all passages shown, of the reader's quotes, and of the sentences with the most idf in
common with the question, taken until they have as many words as the quotes of the last reader.
Silence: the probability is below the reader's threshold, for answerable questions and for those of
the other sets (at most 100) and the unanswerable ones of the set. Differences are paired over
questions, with 95 % intervals. With ``--model``, a text model writes answers to some questions.

``python benchmarks/rag/reader_quotes.py NAME=INDEX,QUESTIONS ... [--reader REFERENCE ...]
[--model REFERENCE] [--limit 400]``
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import JudgedQuestion, read_question_set
from stillroom.models import TextModel, open_text_model
from stillroom.rag import Index, ask
from stillroom.rag.answer_selection.examples import read_passage
from stillroom.rag.answer_selection.overlap import QuestionOverlap
from stillroom.rag.answer_selection.reader import (
    OVERLAP_READER,
    open_available_reader,
    open_reader,
)
from stillroom.records import Answer
from stillroom.testing import scripted_model

SILENT = scripted_model(["a reader asks no model"])
MODEL_QUESTIONS, FOREIGN_QUESTIONS = 25, 100


def main() -> None:
    """Print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--reader", action="append", default=[])
    parser.add_argument("--model")
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--out", type=Path, help="file of every answer, JSON lines")
    options = parser.parse_args()
    readers = options.reader or ["builtin:reader"]
    model = open_text_model(options.model) if options.model else None
    sets = {}
    for text in options.sets:
        name, _, paths = text.partition("=")
        index, _, questions = paths.partition(",")
        sets[name] = (Path(index), read_question_set(Path(questions)))
    rows = []
    for name, (folder, questions) in sets.items():
        others = [one for key, (_, rest) in sets.items() if key != name for one in rest]
        foreign = spread(others, FOREIGN_QUESTIONS)
        with Index.open(folder) as index:
            arms = measure(index, questions, foreign, readers, model, options.limit)
        rows += [{"set": name, **row} for row in arms]
        report(name, arms, readers)
    report("all", rows, readers)
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def spread(questions: list[JudgedQuestion], most: int) -> list[JudgedQuestion]:
    """Return at most so many questions, from the whole list."""
    return questions[:: max(1, -(-len(questions) // most))]


def measure(
    index: Index,
    questions: list[JudgedQuestion],
    foreign: list[JudgedQuestion],
    readers: list[str],
    model: TextModel | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return one row a question, with the text and probability of each arm."""
    answerable = spread([one for one in questions if one.is_answerable], limit)
    written = {one.id for one in spread(answerable, MODEL_QUESTIONS)} if model else set()
    rows = []
    for question in answerable:
        row: dict[str, Any] = {"question": question.text, "answers": question.answers}
        for reader in readers:
            started = time.process_time()
            answer = quote(index, question.text, reader)
            row[f"seconds/{reader}"] = time.process_time() - started
            row[reader], row[f"chance/{reader}"] = read_text(answer), read_chance(answer)
        row["passages"] = "\n".join(hit.passage.text for hit in answer.hits)
        row["sentence"] = pick(index, question.text, answer, len(row[reader].split()))
        if model is not None and question.id in written:
            generated = ask(index, model, question.text, answering="generate")
            row["model"] = generated.completion.text
        rows.append(row)
    for kind, asked in (
        ("foreign", foreign),
        ("open", [one for one in questions if not one.is_answerable]),
    ):
        for question in asked:
            row = {"question": question.text, "kind": kind}
            for reader in readers:
                row[f"chance/{reader}"] = read_chance(quote(index, question.text, reader))
            rows.append(row)
    return rows


def quote(index: Index, question: str, reader: str) -> Answer:
    """Answer by quoting, without a threshold."""
    settings = {"name": "quote", "reader": reader, "min_probability": 0.0}
    return ask(index, SILENT, question, answering=settings)


def read_text(answer: Answer) -> str:
    """Return the quotes."""
    return "\n".join(part["text"] for part in answer.details.get("quotes", ()))


def read_chance(answer: Answer) -> float:
    """Return the probability that the best sentence answers."""
    steps = [step for step in answer.details["trace"] if step["step"] == "select"]
    return float(steps[0]["probability"]) if steps else 0.0


def pick(index: Index, question: str, answer: Answer, words: int) -> str:
    """Return the sentences with the most in common with the question, up to a number of words."""
    passages = [read_passage(hit) for hit in answer.hits]
    reading = open_reader(OVERLAP_READER).read(
        question,
        [(part.title, part.text, part.sentences) for part in passages],
        QuestionOverlap(index, question),
    )
    texts: list[str] = []
    for one in reading.sentences:
        if texts and len(" ".join(texts).split()) >= words:
            break
        texts.append(passages[one.passage].text[one.start : one.end])
    return "\n".join(texts)


def report(name: str, rows: list[dict[str, Any]], readers: list[str]) -> None:
    """Print the figures of a set."""
    answerable = [row for row in rows if "answers" in row]
    held = {
        arm: [float(contains_answer(row[arm], row["answers"])) for row in answerable]
        for arm in ("passages", "sentence", *readers)
    }
    for arm, values in held.items():
        show(bootstrap(values, name=f"reader/{name}/{arm}/holds"))
    for reader in readers:
        gap = paired_difference(held[reader], held["sentence"])
        show(gap, f"reader/{name}/{reader}_minus_sentence")
        if reader != readers[0]:
            show(
                paired_difference(held[reader], held[readers[0]]),
                f"reader/{name}/{reader}_minus_{readers[0]}",
            )
    written = [row for row in answerable if "model" in row]
    if written:
        values = [float(contains_answer(row["model"], row["answers"])) for row in written]
        show(bootstrap(values, name=f"reader/{name}/base/holds"))
        ours = [float(contains_answer(row[readers[-1]], row["answers"])) for row in written]
        show(paired_difference(ours, values), f"reader/{name}/{readers[-1]}_minus_base")
    for reader in readers:
        threshold = open_available_reader(reader)[0].threshold  # of English documents
        for kind, group in group_by_kind(rows):
            values = [float(row[f"chance/{reader}"] < threshold) for row in group]
            show(bootstrap(values, name=f"reader/{name}/{reader}/silent_{kind}"))
        spent = [row[f"seconds/{reader}"] for row in answerable]
        line = {"name": f"reader/{name}/{reader}/cpu_s", "value": round(sum(spent) / len(spent), 4)}
        print(json.dumps(line), flush=True)


def group_by_kind(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the rows of answerable, foreign and open questions."""
    for kind in ("answerable", "foreign", "open"):
        group = [row for row in rows if row.get("kind", "answerable") == kind]
        if group:
            yield kind, group


def show(metric: Metric, name: str = "") -> None:
    """Print a figure as one line of JSON."""
    values = {key: getattr(metric, key) for key in ("value", "low", "high")}
    row = {key: None if value is None else round(value, 3) for key, value in values.items()}
    print(json.dumps({"name": name or metric.name, **row, "n": metric.n}), flush=True)


if __name__ == "__main__":
    main()
