"""Test questions planted in training texts: how many are found, by kind, and false alarms.

Items are the first 300 questions of a file of grade-school problems, texts are the others. Without
that file the items are 36 of its questions and sentences of the Python language reference, whose
other sentences are the texts: real text that every Python brings. Planted
are verbatim copies (alone and within other text), copies with one word in ten and in six changed,
shuffled words, and rewordings by hand: 24 that the threshold was chosen on, 12 that it was not
(paraphrases*.json, of items 1-24 and 25-36). The baseline is overlap of word 13-grams, and for
rewordings cosine alone at the threshold that gives as many false alarms. False alarms of rewordings
are counted on 1,500 of the texts; some are variants of an item that the file itself holds.
``rephrasings.json`` are rewordings of several kinds (reworded, shortened, retold at length, told of
other people and things, translated, and tasks of a few words), each of its own item, which is
indexed with the others; 20 of them were written after all settings were chosen.
``rephrasings_answered.json`` are more of them with the items' answers: they are looked for with and
without these, at as many false alarms.

Usage: bench_decontamination.py [QUESTIONS.jsonl [--kinds]] (GSM8K's train.jsonl, say); --kinds
measures the rewordings by kind alone
"""

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from stillroom.evaluate.final_answer import extract_answer
from stillroom.models import open_embedder
from stillroom.records import Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers
from stillroom.synth.dedup.contamination import MatchThresholds
from stillroom.text.dedup.decontamination import BenchmarkIndex, count_document_frequencies
from stillroom.text.dedup.paraphrases import ParaphraseIndex
from stillroom.text.language import split_sentences
from stillroom.text.unicode import split_words

HERE = Path(__file__).parent
ITEMS, COMPARED = 300, 1500
EMBEDDER = "hub:sentence-transformers/all-MiniLM-L6-v2"


def grams(text: str, n: int = 13) -> set[tuple[str, ...]]:
    """Return the word n-grams, as the baseline has them: none of a shorter text."""
    found = split_words(text)
    return {tuple(found[at : at + n]) for at in range(len(found) - n + 1)}


def planted(items: Sequence[str], texts: Sequence[str]) -> dict[str, list[str]]:
    """Return each kind's texts, one an item."""
    rng = random.Random(0)
    vocabulary = sorted({word for text in texts[:500] for word in text.split()})

    def change(text: str, every: int) -> str:
        told = text.split()
        return " ".join(
            rng.choice(vocabulary) if at % every == every // 2 else word
            for at, word in enumerate(told)
        )

    def within(text: str) -> str:
        return f"{rng.choice(texts)} {text} {rng.choice(texts)}"

    kinds: dict[str, Callable[[str], str]] = {
        "exact": lambda text: text,
        "exact, within other text": within,
        "short, within other text": lambda text: within(" ".join(text.split()[:8])),
        "1 word in 10": lambda text: change(text, 10),
        "1 word in 6": lambda text: change(text, 6),
        "1 word in 6, within other text": lambda text: within(change(text, 6)),
        "shuffled": lambda text: " ".join(rng.sample(text.split(), len(text.split()))),
    }
    return {name: [make(item) for item in items] for name, make in kinds.items()}


def say(what: str, value: float, **more: object) -> None:
    """Print one figure."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"what": what, "value": round(value, 4), **more, "machine": machine}))


def measure_words(items: Sequence[str], texts: Sequence[str]) -> None:
    """Print recall and false alarms of finding by words, beside the baseline."""
    frequency, count = count_document_frequencies(texts)
    index = BenchmarkIndex(items, frequency=frequency, texts=count)
    heads = BenchmarkIndex([" ".join(item.split()[:8]) for item in items])
    table = [grams(item) for item in items]
    every = set().union(*table)
    for kind, copies in planted(items, texts).items():
        asked = heads if kind.startswith("short") else index
        found = [asked.find(copy) for copy in copies]
        hit = sum(match is not None and match.item == at for at, match in enumerate(found))
        base = sum(bool(grams(copy) & held) for copy, held in zip(copies, table, strict=True))
        name = "exact" if kind == "exact" else "near" if kind == "1 word in 10" else kind
        baseline = 0.0 if kind.startswith("short") else base / len(items)
        say(
            f"synth/decontamination/{name}/recall",
            hit / len(items),
            kind=kind,
            n=len(items),
            grams_13=round(baseline, 4),
        )
    begun = time.process_time()
    alarms = sum(index.find(text) is not None for text in texts)
    spent = time.process_time() - begun
    base = sum(bool(grams(text) & every) for text in texts)
    say(
        "synth/decontamination/words/false_alarms",
        alarms / len(texts),
        n=len(texts),
        grams_13=round(base / len(texts), 4),
        texts_per_cpu_s=round(len(texts) / spent),
    )


def measure_meanings(items: Sequence[str], texts: Sequence[str]) -> None:
    """Print recall of rewordings and false alarms, beside cosine alone."""
    frequency, count = count_document_frequencies(texts)
    embedder = open_embedder(EMBEDDER)
    vectors = embedder.embed(items, kind="passage")
    index = ParaphraseIndex(items, vectors, frequency=frequency, texts=count)
    limit = MatchThresholds().reworded
    compared = texts[-COMPARED:]
    near = [
        index.find(t, v)
        for t, v in zip(compared, embedder.embed(compared, kind="passage"), strict=True)
    ]
    alarms = sum(one is not None and one.score >= limit for one in near)
    cosine = sorted((one.cosine for one in near if one), reverse=True)[max(alarms, 1) - 1]
    first = 0
    for name in ("paraphrases", "paraphrases_held_out"):
        told: list[str] = json.loads((HERE / f"{name}.json").read_text())
        own = range(first, first + len(told))
        first += len(told)
        rows = embedder.embed(told, kind="passage")
        found = [index.find(text, row) for text, row in zip(told, rows, strict=True)]
        hit = sum(
            one is not None and one.item == at and one.score >= limit
            for at, one in zip(own, found, strict=True)
        )
        alone = sum(
            float(np.dot(vectors[at], row)) >= cosine for at, row in zip(own, rows, strict=True)
        )
        kind = "rephrased" if name.endswith("held_out") else "rephrased, chosen on"
        say(
            f"synth/decontamination/{kind}/recall",
            hit / len(told),
            n=len(told),
            cosine_alone=round(alone / len(told), 4),
        )
    say("synth/decontamination/rephrased/false_alarms", alarms / len(compared), n=len(compared))


def measure_kinds(items: Sequence[str], texts: Sequence[str]) -> None:
    """Print recall of each kind of rewording, of those that settings were chosen on and others."""
    rows = json.loads((HERE / "rephrasings.json").read_text())["rephrasings"]
    every = list(dict.fromkeys([*items, *(row["item"] for row in rows)]))
    aside = set(every)
    frequency, count = count_document_frequencies(text for text in texts if text not in aside)
    embedder = open_embedder(EMBEDDER)
    index = ParaphraseIndex(
        every, embedder.embed(every, kind="passage"), frequency=frequency, texts=count
    )
    limit = MatchThresholds().reworded
    vectors = embedder.embed([row["text"] for row in rows], kind="passage")
    hits: dict[tuple[str, bool], list[bool]] = {}
    for row, vector in zip(rows, vectors, strict=True):
        found = index.find(row["text"], vector)
        is_hit = found is not None and every[found.item] == row["item"] and found.score >= limit
        hits.setdefault((row["kind"], row["chosen_on"]), []).append(is_hit)
    for chosen in (True, False):
        told = {kind: held for (kind, on), held in hits.items() if on == chosen}
        name = "chosen on" if chosen else "held out"
        for kind, held in told.items():
            what = f"synth/decontamination/{kind}, {name}/recall"
            say(what, sum(held) / len(held), n=len(held))
        total = [one for held in told.values() for one in held]
        what = f"synth/decontamination/all rewordings, {name}/recall"
        say(what, sum(total) / len(total), n=len(total))


def measure_answers(items: Sequence[str], texts: Sequence[str], answers: Mapping[str, str]) -> None:
    """Print recall with and without the answers of items and texts, at as many false alarms."""
    rows = json.loads((HERE / "rephrasings_answered.json").read_text())["rephrasings"]
    told = dict(answers) | {row["item"]: row["answer"] for row in rows}
    every = list(dict.fromkeys([*items, *(row["item"] for row in rows)]))
    others = [text for text in texts if text not in set(every)][-COMPARED:]
    frequency, count = count_document_frequencies(others)
    embedder = open_embedder(EMBEDDER)
    index = ParaphraseIndex(
        every, embedder.embed(every, kind="passage"), frequency=frequency, texts=count
    )
    known = BenchmarkAnswers([told.get(item, "") for item in every])
    pairs = [(row["text"], row["answer"]) for row in rows]
    pairs += [(text, told.get(text, "")) for text in others]
    vectors = embedder.embed([text for text, _ in pairs], kind="passage")
    alarms = 0
    for name in ("with", "without"):
        scores = []
        for at, ((text, answer), vector) in enumerate(zip(pairs, vectors, strict=True)):
            same = known.find_same(Record((), {"answer": answer})) if name == "with" else ()
            found = index.find(text, vector, same)
            is_own = found is not None and (
                at >= len(rows) or every[found.item] == rows[at]["item"]
            )
            scores.append(found.score if found is not None and is_own else 0.0)
        null = sorted(scores[len(rows) :], reverse=True)
        limit = MatchThresholds().reworded
        if name == "with":
            alarms = sum(score >= limit for score in null)
        else:  # as many, from a lower limit on if need be
            limit = min(limit, null[alarms] + 1e-9)
        for chosen in (True, False):
            hits = [s >= limit for s, row in zip(scores, rows, strict=False)
                    if row["chosen_on"] == chosen]  # fmt: skip
            what = f"synth/decontamination/rewordings {name} answers, " + (
                "chosen on" if chosen else "held out"
            )
            say(f"{what}/recall", sum(hits) / len(hits), n=len(hits), alarms=alarms, of=len(null))


def read_questions(path: Path | None) -> tuple[list[str], list[str]]:
    """Return items and texts."""
    if path is not None:
        questions = [json.loads(line)["question"] for line in path.read_text().splitlines()]
        return questions[:ITEMS], questions[ITEMS:]
    told = json.loads((HERE / "paraphrased_items.json").read_text())["items"]
    found = {
        " ".join(text[begin:end].split())
        for text in topics.values()
        for begin, end in split_sentences(text)
    }
    fit = sorted(one for one in found if 12 <= len(split_words(one)) <= 60)
    random.Random(0).shuffle(fit)
    missing = ITEMS - len(told)
    return [*told, *fit[:missing]], fit[missing:]


def main(path: Path | None, *, kinds_alone: bool) -> None:
    """Measure both ways of finding."""
    items, texts = read_questions(path)
    if not kinds_alone:
        measure_words(items, texts)
        measure_meanings(items, texts)
    measure_kinds(items, texts)
    answers: dict[str, str] = {}
    if path is not None:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            answers[row["question"]] = extract_answer(row["answer"])
    measure_answers(items, texts, answers)


if __name__ == "__main__":
    named = [one for one in sys.argv[1:] if not one.startswith("--")]
    main(Path(named[0]) if named else None, kinds_alone="--kinds" in sys.argv)
