"""Does a quoted sentence hold the answer? A reader beside shared words, from the same passages.

Each question is answered from the three passages that the index returns. ``holds`` is the share of
the questions for which the text holds an accepted answer word for word: all passages, the sentence
with the most idf in common with the question, and the reader's. Silence: every question is also
asked with the passages removed that hold an answer. Differences are paired over questions, with
95 % intervals.

``python benchmarks/rag/reader_quotes.py INDEX QUESTIONS READER [--limit 400]``
"""

import argparse
import json
import time
from pathlib import Path

from stillroom.evaluate import Metric, bootstrap, paired_difference
from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.rag import Index, retrieve
from stillroom.rag.answer_selection.examples import ReaderPassage, read_passage
from stillroom.rag.answer_selection.overlap import OverlapReader, QuestionOverlap, Reading
from stillroom.rag.answer_selection.reader import SentenceReader, open_reader

K, SPARE = 3, 3


def main() -> None:
    """Print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("index", "questions"):
        parser.add_argument(name, type=Path)
    parser.add_argument("reader")
    parser.add_argument("--limit", type=int, default=400)
    options = parser.parse_args()
    reader = open_reader(options.reader)
    arms: dict[str, list[float]] = {}
    silent: dict[str, list[float]] = {"answerable": [], "unanswerable": []}
    questions = [one for one in read_question_set(options.questions) if one.is_answerable]
    questions = questions[:: max(1, len(questions) // options.limit)][: options.limit]
    seconds = 0.0
    with Index.open(options.index) as index:
        for question in questions:
            passages = [read_passage(hit) for hit in retrieve(index, question.text, K + SPARE)]
            shown = passages[:K]
            overlap = QuestionOverlap(index, question.text)
            started = time.process_time()
            reading = read(reader, question.text, shown, overlap)
            seconds += time.process_time() - started
            first = [shown[one.passage].text[one.start : one.end] for one in reading.sentences]
            words = sorted(reading.sentences, key=lambda one: -one.overlap)
            common = [shown[one.passage].text[one.start : one.end] for one in words]
            texts = {
                "passages": [part.text for part in shown],
                "overlap": common[:1],
                "overlap, two": common[:2],
                "reader": first[:1],
                "reader, two": first[:2],
            }
            for name, parts in texts.items():
                held = contains_answer("\n".join(parts), question.answers)
                arms.setdefault(name, []).append(held)
            silent["answerable"].append(float(reading.probability < reader.threshold))
            others = [p for p in passages if not contains_answer(p.text, question.answers)][:K]
            if others:
                silenced = read(reader, question.text, others, overlap)
                silent["unanswerable"].append(float(silenced.probability < reader.threshold))
    for name, values in arms.items():
        show(bootstrap(values, name=f"holds/{name}"))
    show(paired_difference(arms["reader"], arms["overlap"], name="reader - overlap"))
    show(paired_difference(arms["reader, two"], arms["overlap, two"], name="the same, two"))
    for name, values in silent.items():
        show(bootstrap(values, name=f"silent/{name}"))
    print(json.dumps({"name": "cpu s a question", "value": seconds / len(arms["reader"])}))


def read(
    reader: SentenceReader | OverlapReader,
    question: str,
    passages: list[ReaderPassage],
    overlap: QuestionOverlap,
) -> Reading:
    """Return the reader's scores of the passages' sentences."""
    return reader.read(question, [(p.title, p.text, p.sentences) for p in passages], overlap)


def show(metric: Metric) -> None:
    """Print a figure as one line of JSON."""
    row = {key: round(getattr(metric, key), 3) for key in ("value", "low", "high")}
    print(json.dumps({"name": metric.name, **row, "n": metric.n}), flush=True)


if __name__ == "__main__":
    main()
