"""Planted faults among good records: recall and precision of each filter by itself.

Good records are SQuAD questions with the sentence that holds the answer; each filter judges them
and 34 planted ones of each kind (204 in all), in one order. Recall is the share of its kind that a
filter drops; precision the share of what it drops that is of its kind (a copy of a record with
another fault is no fault of the filter's, so only good ones count against it). Faults are
sentences of another article or numbers changed (ungrounded), copies with a word changed
(duplicate), held-out questions with a word changed (leaked), and pairs in other languages, refusals
and personal data written for this file.

Usage: bench_filters.py SQUAD.json
"""

import json
import os
import platform
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stillroom.records import Location, Message, Origin, Passage, Record
from stillroom.synth.method import FILTERS, Context
from stillroom.synth.wording import content_stems
from stillroom.text.sentences import split_sentences

GOOD, HELD_OUT, PLANTED = 1000, 300, 34
OTHER_LANGUAGES = [
    (
        "Wann wurde die alte Brücke über den Fluss gebaut?",
        "Das war schon im Mittelalter.",
    ),
    ("Wer schrieb das bekannte Buch über die Stadt?", "Ein Lehrer aus dem Norden schrieb es."),
    (
        "Warum zogen so viele Menschen in den Süden?",
        "Dort gab es Arbeit und Wärme.",
    ),
    (
        "Quand le vieux moulin sur la rivière a-t-il été construit ?",
        "Il date du Moyen Âge.",
    ),
    ("Qui a écrit ce livre célèbre sur la ville ?", "C'est un instituteur du nord qui l'a écrit."),
    ("Pourquoi tant de gens sont-ils partis vers le sud ?", "Ils y cherchaient du travail."),
    ("¿Cuándo se construyó el viejo puente sobre el río?", "Se construyó en la Edad Media."),
    ("¿Quién escribió el famoso libro sobre la ciudad?", "Lo escribió un maestro del norte."),
    ("¿Por qué se fue tanta gente hacia el sur?", "Porque allí buscaban trabajo y calor."),
    (
        "Quando fu costruito il vecchio ponte sul fiume?",
        "Fu costruito nel Medioevo.",
    ),
]
REFUSALS = [
    "I'm sorry, but I cannot answer that.",
    "As an AI language model, I have no opinion on this.",
    "Unfortunately, I am not able to help with this request.",
    "I don't have enough information to answer the question.",
    "The passage does not mention who did this.",
    "The text doesn't say when that happened.",
    "I apologize, but I can't provide that.",
    "This is not specified in the document.",
    "I cannot determine this from what is given.",
    "Could you provide more context, please?",
]
PERSONAL = [
    "Write to anna.berg@posteo.de for more.",
    "Her telephone number is +49 30 1234 5678.",
    "He paid with the card 4539 5787 6362 1486.",
    "The account is DE89 3704 0044 0532 0130 00.",
    "It was sent from 81.169.145.66 at night.",
    "Call (212) 736-5000 and ask for the keeper.",
    "His number is 536-90-4399.",
    "The key was ghp_a1B2c3D4e5F6a1B2c3D4e5F6a1B2c3D4e5F6.",
    "Ask m.rossi@comune.milano.it about it.",
    "Reach her at 030/1234567 after six.",
]
FILTER_OF = {
    "language": "language",
    "ungrounded": "grounded",
    "duplicate": "duplicate",
    "leaked": "decontaminate",
    "refusal": "refusal",
    "personal": "personal",
}


def make_record(passage: Passage, asked: str, said: str, quote: str, split: str) -> Record:
    """Return a record as the grounded generator writes them."""
    start = passage.start + passage.text.find(quote)
    evidence = {
        "passage_id": passage.id,
        "quote": quote,
        "start": start,
        "end": start + len(quote),
    }
    fields = {"question": asked, "answer": said, "evidence": evidence, "split": split}
    return Record(
        (Message("user", asked), Message("assistant", said)),
        fields | {"document_id": passage.document_id},
    )


def read_good(path: Path) -> tuple[list[Passage], list[Record]]:
    """Return the passages, and a record for each question whose answer's sentence is clear."""
    passages, records = [], []
    for article in json.loads(path.read_text())["data"]:
        for number, paragraph in enumerate(article["paragraphs"]):
            text = paragraph["context"]
            place = Location(f"{article['title']}.txt", "0" * 64, 0, len(text.encode()))
            start = 100_000 * number
            passage = Passage(
                article["title"], start, start + len(text), text, place, origin=Origin("human")
            )
            passages.append(passage)
            spans = split_sentences(text)
            for asked in paragraph["qas"]:
                if not asked["answers"]:
                    continue
                at = asked["answers"][0]["answer_start"]
                held = [text[a:b] for a, b in spans if a <= at < b]
                if held:
                    question = asked["question"].strip()
                    records.append(make_record(passage, question, held[0], held[0], "train"))
    return passages, records


def say_again(record: Record, asked: str, said: str) -> Record:
    """Return a record with other words and the same evidence."""
    fields = {**record.fields, "question": asked, "answer": said}
    return replace(
        record, messages=(Message("user", asked), Message("assistant", said)), fields=fields
    )


def plant(
    good: Sequence[Record], spare: Sequence[Record], held_out: Sequence[Record], rng: random.Random
) -> dict[str, list[Record]]:
    """Return the planted records of each kind."""
    found: dict[str, list[Record]] = {kind: [] for kind in FILTER_OF}
    carriers = iter(spare)
    for number in range(PLANTED):
        asked, said = OTHER_LANGUAGES[number % len(OTHER_LANGUAGES)]
        found["language"].append(say_again(next(carriers), asked, said))
        carrier = next(carriers)
        question, answer = text(carrier, "question"), text(carrier, "answer")
        digits = re.search(r"\b\d{3,4}\b", answer)
        if number % 2 and digits:
            answer = answer.replace(digits.group(), str(int(digits.group()) + 17))
        else:
            answer = text(good[-number - 1], "answer")
        found["ungrounded"].append(say_again(carrier, question, answer))
        original = rng.choice(good)
        found["duplicate"].append(
            say_again(original, text(original, "question"), change(text(original, "answer"), rng))
        )
        leaked = rng.choice(held_out)
        found["leaked"].append(
            say_again(next(carriers), change(text(leaked, "question"), rng), text(leaked, "answer"))
        )
        carrier = next(carriers)
        refusal = REFUSALS[number % len(REFUSALS)]
        found["refusal"].append(say_again(carrier, text(carrier, "question"), refusal))
        carrier = next(carriers)
        exposed = f"{text(carrier, 'answer')} {PERSONAL[number % len(PERSONAL)]}"
        found["personal"].append(say_again(carrier, text(carrier, "question"), exposed))
    return found


def text(record: Record, name: str) -> str:
    """Return a field of a record."""
    return str(record.fields[name])


def change(words: str, rng: random.Random) -> str:
    """Return words with one of them replaced."""
    told = words.split()
    told[rng.randrange(len(told))] = rng.choice(["notably", "reportedly", "then", "also"])
    return " ".join(told)


def main(path: Path) -> None:
    """Judge all records by each filter and print a line a kind."""
    rng = random.Random(0)
    passages, records = read_good(path)
    rng.shuffle(records)
    unique: dict[str, Record] = {}
    for record in records:  # several questions share a sentence: those are no clean ones
        unique.setdefault(text(record, "answer"), record)
    pool = list(unique.values())
    good, pool = pool[:GOOD], pool[GOOD:]
    held_out, spare = pool[:HELD_OUT], pool[HELD_OUT:]
    planted = plant(good, spare, held_out, rng)
    frequency: Counter[str] = Counter()
    for passage in passages:
        frequency.update(set(content_stems(passage.text)))
    context = Context({one.id: one for one in passages}, frequency, held_out)
    for kind, name in FILTER_OF.items():
        judge = FILTERS.build(name).begin(context)
        wrong = 0
        for record in good:
            verdict = judge.judge(record)
            wrong += not verdict.keep
            if verdict.keep:
                judge.admit(record)
        right = sum(not judge.judge(record).keep for record in planted[kind])
        machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        told = {"n": PLANTED, "good": len(good), "good_dropped": wrong, "machine": machine}
        for figure, value in (
            ("recall", right / PLANTED),
            ("precision", right / max(right + wrong, 1)),
        ):
            what = f"synth/filters/{kind}/{figure}"
            print(json.dumps({"what": what, "value": round(value, 4), **told}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        print("no figures of filters: name a SQuAD file", file=sys.stderr)
