"""The page of a run: every part of it is there, says what was counted, and shows text as text."""

import re

from stillroom.records import Message, Origin, Record
from stillroom.synth.interfaces import FILTERS
from stillroom.synth.output.page import ReportInput, render_report
from stillroom.synth.pipeline.statistics import RecordStats
from stillroom.synth.types import RejectedRecord

WORDS = "bees make wax and honey in a hive that stands below the old lime tree by the river".split()


def record(number, license="MIT", kind="synthetic"):
    said = " ".join(WORDS[number % 7 :]) + f" {number}."
    turns = (Message("user", f"What is number {number} of bees?"), Message("assistant", said))
    return Record(turns, {"document_id": f"d{number % 5}"}, Origin(kind, (), license))


def tell(**more):
    train = [record(number) for number in range(60)]
    dropped = [
        RejectedRecord(
            "train", "grounded", "not supported", f"u{n}", 0.2, record(n), limit=0.85, step="clean"
        )
        for n in range(5)
    ]
    why = "held-out text in training"
    leak = RejectedRecord("train", "decontaminate", why, "u", 0.9, record(3), against="What <b>?")
    step = {"taken": 65, "given": 60, "asked": 65, "prompt_tokens": 9, "completion_tokens": 9}
    report = {
        "splits": {"train": {"documents": 7, "steps": {"ask": {**step, "dropped": {"x": 5}}}}},
        "steps": {"ask": {"from": ["index"]}},
        "spent": {
            "asks": 65,
            "tokens": 18,
            "money": 0.5,
            "prices": {"input": 2.5, "output": 10.0},
        },
    }
    given = {
        "report": report,
        "train": train,
        "held_out": [record(99)],
        "dropped": [*dropped, leak],
        "seeds": [" ".join(WORDS) + f" seed {n}" for n in range(40)],
        "teachers": ["http://h/v1#gpt-5", "http://h/v1#gpt-5"],
        "checks": [FILTERS.build("decontaminate")],
    }
    told = {**given, **more}
    sides = {side: RecordStats.of(told[side]) for side in ("train", "held_out")}
    return ReportInput(**{**told, **sides})


def test_every_part_is_there():
    page = render_report(tell())
    for said in (
        "61 records kept, 1 of them held out; 6 rows rejected in 65 requests.",
        "Yield by step: train",
        "A million tokens of prompts cost 2.5, of completions 10.",
        "clean / grounded",
        "0.2 (bound 0.85)",
        "Examples of kept records",
        "distinct_<wbr>1/<wbr>generated",
        "5 of 7 documents",
        "1 row matched",
        "What &lt;b&gt;?",
        "outputs may not train models that compete",
        "Of the training records: 60 synthetic.",
    ):
        assert said in page, said
    assert page.count("http://h/v1#gpt-5") == 1
    assert "<b>?" not in page
    assert not re.search(r"src=|href=|<script", page)
    assert page == render_report(tell())


def test_what_was_not_checked_is_not_called_clean():
    assert "Not checked: no step has" in render_report(tell(checks=[]))
    assert "Not checked: no record is held out" in render_report(tell(held_out=[]))
    named = FILTERS.build({"name": "reworded", "against": ["/tests/bench.jsonl"]})
    page = render_report(tell(checks=[named], held_out=[]))
    assert "0 held-out records and the items of bench.jsonl were searched for" in page
    assert "Rewordings were not" not in page
    assert "Requests of filters to their own models are not counted." in page


def test_what_starts_from_nothing_covers_nothing():
    report = tell().report
    splits = {"train": {**report["splits"]["train"], "documents": 0}}
    page = render_report(tell(report={**report, "splits": splits}))
    assert "Coverage of the seed documents" not in page
    assert "Length of answers" in page


def test_little_and_nothing_can_be_drawn():
    page = render_report(tell(train=[record(1)], dropped=[], seeds=[], teachers=[], held_out=[]))
    assert "too little to measure" in page
    assert "No record was rejected." in page
    unknown = render_report(tell(train=[record(1, license="", kind="unknown")]))
    assert "The origin of 1 training records is unknown." in unknown
    assert "nobody tells" in unknown


def test_a_chain_is_two_steps():
    report = tell().report
    side = {
        "documents": 5,
        "units": 40,
        "asked": 80,
        "parsed": 70,
        "kept": 60,
        "dropped": {"generator: no question": 4, "shape: too long": 10},
        "prompt_tokens": 1,
        "completion_tokens": 1,
    }
    page = render_report(tell(report={"splits": {"train": side}, "spent": report["spent"]}))
    cells = ("keep", "ask", "70", "60", "86%")
    assert re.search("".join(f"<td[^>]*>{cell}</td>" for cell in cells), page)
