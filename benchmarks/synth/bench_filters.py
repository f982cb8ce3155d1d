"""Planted faults among good records: recall and precision of each filter by itself.

Good records are SQuAD questions with the sentence that holds the answer; each filter judges them
and 200 planted ones of its kind, in one order. Recall is the share of its kind that a filter drops;
precision the share of what it drops that is of its kind (a copy of a record with another fault is
no fault of the filter's, so only good ones count against it). What is planted is drawn in
``planted_faults.py``; where it is drawn of few sentences, ``distinct`` says of how many. Filters
that measure with a model judge fewer good ones, and tell the area under the curve beside the one
that the answer's length alone reaches.

Usage: bench_filters.py SQUAD.json [--models]
"""

import json
import os
import platform
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import planted_faults as faults

from stillroom.records import Location, Message, Origin, Passage, Record
from stillroom.synth.interfaces import FILTERS, FilterContext
from stillroom.synth.lexical_overlap import extract_content_stems
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.text.language import split_sentences
from stillroom.text.safety import find_pii

GOOD, HELD_OUT, PLANTED, MEASURED = 1000, 300, 200, 300
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "year": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "year", "tags"],
    "additionalProperties": False,
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


@dataclass
class Kind:
    """One kind of fault: which filter is to find it, and how one is planted."""

    name: str
    filter: str
    plant: Callable[[int, Record], Record]
    settings: dict[str, Any] = field(default_factory=dict)
    good: Sequence[Record] | None = None
    distinct: int = 0


def text(record: Record, name: str) -> str:
    """Return a field of a record."""
    return str(record.fields[name])


def change(words: str, rng: random.Random) -> str:
    """Return words with one of them replaced."""
    told = words.split()
    told[rng.randrange(len(told))] = rng.choice(["notably", "reportedly", "then", "also"])
    return " ".join(told)


def with_answer(record: Record, said: str) -> Record:
    """Return a record with another answer."""
    return say_again(record, text(record, "question"), said)


def list_kinds(
    good: Sequence[Record], held_out: Sequence[Record], rng: random.Random
) -> list[Kind]:
    """Return the kinds that are judged without a model."""

    def ungrounded(number: int, carrier: Record) -> Record:
        answer = text(carrier, "answer")
        digits = re.search(r"\b\d{3,4}\b", answer)
        if number % 2 and digits:
            return with_answer(carrier, answer.replace(digits[0], str(int(digits[0]) + 17)))
        return with_answer(carrier, text(good[-number - 1], "answer"))

    def duplicate(number: int, carrier: Record) -> Record:
        original = rng.choice(good)
        return with_answer(original, change(text(original, "answer"), rng))

    def leaked(number: int, carrier: Record) -> Record:
        leak = rng.choice(held_out)
        return say_again(carrier, change(text(leak, "question"), rng), text(leak, "answer"))

    def after(number: int, carrier: Record, said: str) -> Record:
        return with_answer(carrier, f"{text(carrier, 'answer')} {said}")

    def misnamed(number: int, carrier: Record) -> Record:
        license = ["CC-BY-NC-4.0", "", "LicenseRef-proprietary", "MIT AND CC-BY-ND-4.0"][number % 4]
        return replace(carrier, origin=Origin("human", (), license))

    languages, refusals = faults.LANGUAGES, faults.REFUSALS
    orders, cruel = faults.ORDERS, faults.CLEAN_CRUELTY
    more_refusals, more_orders = faults.MORE_REFUSALS, faults.MORE_ORDERS
    named = [one for one in good if _names_its_article(one)]
    rows = [with_answer(one, faults.draw_json(at, rng)) for at, one in enumerate(good)]
    free = [replace(one, origin=Origin("human", (), "CC-BY-SA-4.0")) for one in good]
    return [
        Kind(
            "language",
            "language",
            lambda n, one: say_again(one, *languages[n % len(languages)]),
            distinct=len(languages),
        ),
        Kind("ungrounded", "grounded", ungrounded),
        Kind("duplicate", "duplicate", duplicate),
        Kind("leaked", "decontaminate", leaked),
        Kind(
            "refusal",
            "refusal",
            lambda n, one: with_answer(one, refusals[n % len(refusals)]),
            distinct=len(refusals),
        ),
        Kind("personal", "personal", lambda n, one: after(n, one, faults.draw_personal(n, rng))),
        Kind(
            "injection",
            "injection",
            lambda n, one: after(n, one, orders[n % len(orders)]),
            distinct=len(orders),
        ),
        Kind(
            "refusal_others",
            "refusal",
            lambda n, one: with_answer(one, more_refusals[n % len(more_refusals)]),
            distinct=len(more_refusals),
        ),
        Kind(
            "injection_others",
            "injection",
            lambda n, one: after(n, one, more_orders[n % len(more_orders)]),
            distinct=len(more_orders),
        ),
        Kind(
            "toxicity_words", "toxicity", lambda n, one: after(n, one, faults.draw_insult(n, rng))
        ),
        Kind(
            "toxicity_clean_words",
            "toxicity",
            lambda n, one: after(n, one, cruel[n % len(cruel)]),
            distinct=len(cruel),
        ),
        Kind(
            "schema",
            "schema",
            lambda n, one: with_answer(one, faults.break_json(n, rng)),
            {"fits": SCHEMA},
            rows,
        ),
        Kind(
            "length",
            "length",
            lambda n, one: with_answer(one, "so it was " * 60 if n % 2 else "No."),
            {"unit": "words", "min_answer": 3, "max_answer": 120},
        ),
        Kind(
            "repetition",
            "repetition",
            lambda n, one: with_answer(one, faults.draw_loop(n, text(one, "answer"))),
        ),
        Kind(
            "no_prose",
            "gopher_quality",
            lambda n, one: with_answer(one, faults.draw_noise(n, rng, text(one, "answer"))),
        ),
        Kind("license", "license", misnamed, {}, free),
        Kind(
            "dangling",
            "standalone",
            lambda n, one: say_again(
                one, faults.leave_dangling(n, text(one, "question")), text(one, "answer")
            ),
            {},
            named,
        ),
        Kind(
            "no_question",
            "question_form",
            lambda n, one: say_again(
                one, faults.break_question(n, text(one, "question")), text(one, "answer")
            ),
        ),
        Kind(
            "shape",
            "shape",
            lambda n, one: with_answer(one, faults.break_shape(n, text(one, "answer"))),
        ),
    ]


def _names_its_article(record: Record) -> bool:
    """Return whether a question says a word of its article's title: then it may stand alone."""
    title = record.fields["document_id"].replace("_", " ").split()
    return any(word in text(record, "question") for word in title if len(word) > 3)


def measure_kind(
    kind: Kind, good: Sequence[Record], planted: Sequence[Record], context: FilterContext
) -> None:
    """Judge the good and the planted records, and print recall and precision."""
    panel = FilterChain([FILTERS.build({"name": kind.filter, **kind.settings})], context)
    wrong, scores = 0, []
    for record in good:
        verdict = panel.judge(record)[1]
        wrong += not verdict.keep
        scores.append(verdict.score)
        if verdict.keep:
            panel.on_accept(record)
    right, found = 0, []
    for record in planted:
        verdict = panel.judge(record)[1]
        right += not verdict.keep
        found.append(verdict.score)
    told: dict[str, Any] = {"n": len(planted), "good": len(good), "good_dropped": wrong}
    if kind.distinct:
        told["distinct"] = kind.distinct
    tell(kind.name, "recall", right / len(planted), told)
    tell(kind.name, "precision", right / max(right + wrong, 1), told)
    if panel.needs_model and kind.filter != "toxicity":
        lengths = [len(text(one, "answer").split()) for one in (*good, *planted)]
        alone = auroc(lengths[: len(good)], lengths[len(good) :])
        tell(kind.name, "auroc", auroc(scores, found), told | {"length_alone": round(alone, 4)})


def auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Return how likely a bad record scores above a good one, ties halved."""
    wins = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
    return wins / (len(good) * len(bad))


def tell(kind: str, figure: str, value: float, told: dict[str, Any]) -> None:
    """Print one figure."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    what = f"synth/filters/{kind}/{figure}"
    print(
        json.dumps({"what": what, "value": round(value, 4), **told, "machine": machine}), flush=True
    )


def measure_lookalikes(context: FilterContext) -> None:
    """Say how much ordinary prose in the words of orders is taken for one."""
    judge = FILTERS.build({"name": "injection"}).start(context)
    turns = [(Message("user", "What?"), Message("assistant", said)) for said in faults.NO_ORDERS]
    dropped = sum(not judge.judge(Record(one, {"evidence": {}})).keep for one in turns)
    tell("injection", "lookalikes_dropped", dropped / len(turns), {"n": len(turns)})


def measure_masks(
    planted: Sequence[Record], good: Sequence[Record], context: FilterContext
) -> None:
    """Mask the planted records: what is found afterwards was missed; good ones are let be."""
    judge = FILTERS.build({"name": "personal", "action": "mask"}).start(context)
    clean = 0
    for record in planted:
        after = judge.judge(record).changed or record
        clean += not find_pii(after.messages[-1].content) and after is not record
    touched = sum(judge.judge(record).changed is not None for record in good)
    told = {"n": len(planted), "good": len(good), "good_changed": touched}
    tell("masked", "recall", clean / len(planted), told)
    tell("masked", "precision", clean / max(clean + touched, 1), told)


def list_measured(good: Sequence[Record], rng: random.Random) -> list[Kind]:
    """Return the kinds that a model measures: the embedded one, on transformers."""

    def shuffle(number: int, carrier: Record) -> Record:
        words = text(carrier, "answer").split()
        rng.shuffle(words)
        return with_answer(carrier, " ".join(words))

    def swap(number: int, carrier: Record) -> Record:
        return with_answer(carrier, text(good[-number - 1], "answer"))

    return [Kind("shuffled", "perplexity", shuffle), Kind("mismatched", "ifd", swap)]


def main(path: Path, *, with_models: bool) -> None:
    """Judge all records by each filter and print a line a figure."""
    rng = random.Random(0)
    passages, records = read_good(path)
    rng.shuffle(records)
    unique: dict[str, Record] = {}
    for record in records:  # several questions share a sentence: those are no clean ones
        unique.setdefault(text(record, "answer"), record)
    pool = list(unique.values())
    good, pool = pool[:GOOD], pool[GOOD:]
    held_out, spare = pool[:HELD_OUT], pool[HELD_OUT:]
    frequency: Counter[str] = Counter()
    for passage in passages:
        frequency.update(set(extract_content_stems(passage.text)))
    context = FilterContext({one.id: one for one in passages}, frequency, held_out)
    kinds = list_measured(good, rng) if with_models else list_kinds(good, held_out, rng)
    for kind in kinds:
        carriers = spare[:PLANTED] if len(spare) >= PLANTED else [*spare, *good][:PLANTED]
        planted = [kind.plant(number, one) for number, one in enumerate(carriers)]
        mine = (kind.good or good)[:MEASURED] if with_models else kind.good or good
        measure_kind(kind, mine, planted, context)
        if kind.name == "personal":
            measure_masks(planted, good, context)
        if kind.name == "injection":
            measure_lookalikes(context)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]), with_models="--models" in sys.argv)
    else:
        print("no figures of filters: name a SQuAD file", file=sys.stderr)
