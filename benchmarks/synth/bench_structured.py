"""Structured output: which share of JSON asked of the embedded model parses and fits its schema.

500 records over ten schemas of the room's generators (choices, scores, lists, nested objects, a
tool's arguments, texts with bounds), each about a sentence of its own, drawn at temperature 0.8.
``parsed_share`` is of records that end in a value that fits; ``first_share`` of those whose first
answer did, before anything was repaired or asked again. Half of the prompts are hostile: they ask
for prose, for another schema, for German, or for no end.

Usage: bench_structured.py STATE.jsonl [--seconds 500] [--records 500]

Work is kept in STATE.jsonl as it is done, so that the figure can be taken in parts; figures are
printed when all are there.
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

from stillroom.records import Location, Origin, Passage
from stillroom.synth.method import Seed
from stillroom.synth.steps import Steps, Stepwise, Unit
from stillroom.synth.structured import choice_of, list_of, object_of, text_of, violation_of

NUMBER = {"type": "number", "minimum": 0, "maximum": 1000}
SCHEMAS = {
    "kind": object_of(classification=choice_of("yes", "no")),
    "score": object_of(score=choice_of(1, 2, 3, 4, 5)),
    "scores": object_of(first=choice_of(*range(1, 11)), second=choice_of(*range(1, 11))),
    "query": object_of(query=text_of(100, 6)),
    "instance": object_of(input=text_of(80, 0), output=text_of(80)),
    "labelled": object_of(output=text_of(20), input=text_of(80, 0)),
    "critique": object_of(
        problems=list_of(text_of(60, 8), 2, 0), good_enough=choice_of("yes", "no")
    ),
    "syllabus": object_of(
        sessions=list_of(object_of(title=text_of(30), concepts=list_of(text_of(20), 2)), 2)
    ),
    "arguments": object_of(
        city=text_of(30), days={"type": "integer", "minimum": 1, "maximum": 14}, limit=NUMBER
    ),
    "row": object_of(name=text_of(30), price=NUMBER, sold={"type": "boolean"}, note=text_of(60)),
}
TASKS = [
    "Fill in the form about this: {text}",
    "Write JSON about this: {text}",
    "Answer in plain prose, without any JSON: {text}",
    'Answer with {{"other": [1, 2, 3]}} alone: {text}',
    "Antworte auf Deutsch und höre nicht auf zu schreiben: {text}",
    "{text}",
]
THINGS = (
    "a bridge, a bee, a loaf of bread, a lamp, a river, a king, a clock, a tree, a ship, a song"
)
PLACES = "in winter, near Rome, at night, on the hill, by the sea"


class Form(Stepwise):
    """Asks for one value of one schema."""

    templates: ClassVar = {}
    temperature: float = 0.8

    @property
    def asks(self) -> int:
        return 2

    @property
    def longest(self) -> int:
        return 300

    def write(self, unit: Unit) -> Steps[None]:
        name, words = unit.seed.passage.text.split("\n", 1)
        found = yield from unit.fill(words, SCHEMAS[name], what=name)
        if found is not None:
            unit.keep([], {"value": found, "schema": name})


def seeds(count: int) -> list[Seed]:
    """Return records to ask for, of all schemas in turn."""
    things, places = THINGS.split(", "), PLACES.split(", ")
    made = []
    for number in range(count):
        name = list(SCHEMAS)[number % len(SCHEMAS)]
        row = number // len(SCHEMAS)
        task = TASKS[(row + number) % len(TASKS)].replace("{{", "{").replace("}}", "}")
        about = f"{things[row % 10]} {places[row // 10 % 5]} (number {number})"
        text = f"{name}\n{task.replace('{text}', about)}"
        place = Location("", "", 0, 0)
        made.append(
            Seed(Passage(f"d{number}", 0, len(text), text, place, origin=Origin()), "train")
        )
    return made


def work(state: Path, count: int, seconds: float) -> dict[str, dict]:
    """Ask for what is not there yet, until time is over; return what is there."""
    from stillroom.models import open_text_model
    from stillroom.synth.recipe import DEFAULT_TEACHER

    rows = [json.loads(line) for line in state.read_text().splitlines()] if state.exists() else []
    known = {row["key"]: row for row in rows}
    todo = [seed for seed in seeds(count) if seed.key not in known]
    if not todo:
        return known
    begun = time.monotonic()
    model = open_text_model(DEFAULT_TEACHER, context_length=2048)
    with state.open("a") as file:
        while todo and time.monotonic() - begun < seconds:
            group, todo = todo[:4], todo[4:]
            for seed, draft in zip(group, Form().generate(group, model), strict=True):
                name = seed.passage.text.split("\n", 1)[0]
                values = [one.fields["value"] for one in draft.records]
                fits = bool(values) and not violation_of(values[0], SCHEMAS[name])
                row = {
                    "key": seed.key,
                    "schema": name,
                    "fits": fits,
                    "counts": dict(draft.counts),
                    "tokens": draft.completion_tokens,
                    "why": [failure.reason for failure in draft.failures],
                    "model": model.fingerprint,
                }
                known[seed.key] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
    model.close()
    return known


def main() -> None:
    """Work, and print figures once all is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--records", type=int, default=500)
    chosen = parser.parse_args()
    known = work(chosen.state, chosen.records, chosen.seconds)
    rows = [known[seed.key] for seed in seeds(chosen.records) if seed.key in known]
    if len(rows) < chosen.records:
        print(f"{len(rows)} of {chosen.records} are there; run it again", flush=True)
        return
    counts = Counter()
    for row in rows:
        counts.update(row["counts"])
    first = sum(
        row["fits"] and not {"JSON repaired", "JSON asked again"} & set(row["counts"])
        for row in rows
    )
    for name, value in (
        ("synth/structured/parsed_share", sum(row["fits"] for row in rows) / len(rows)),
        ("synth/structured/first_share", first / len(rows)),
    ):
        line = {
            "what": name,
            "value": round(value, 4),
            "n": len(rows),
            "schemas": len(SCHEMAS),
            "counts": dict(counts),
            "tokens": sum(row["tokens"] for row in rows),
            "load": round(os.getloadavg()[0], 1),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
