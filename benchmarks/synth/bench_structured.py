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

from stillroom.evaluate.json_output import describe_violation
from stillroom.records import Location, Origin, Passage
from stillroom.synth.prompting.requests import (
    make_array_schema,
    make_enum_schema,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator
from stillroom.synth.types import WorkItem

NUMBER = {"type": "number", "minimum": 0, "maximum": 1000}
SCHEMAS = {
    "kind": make_object_schema(classification=make_enum_schema("yes", "no")),
    "score": make_object_schema(score=make_enum_schema(1, 2, 3, 4, 5)),
    "scores": make_object_schema(
        first=make_enum_schema(*range(1, 11)), second=make_enum_schema(*range(1, 11))
    ),
    "query": make_object_schema(query=make_string_schema(100, 6)),
    "instance": make_object_schema(input=make_string_schema(80, 0), output=make_string_schema(80)),
    "labelled": make_object_schema(output=make_string_schema(20), input=make_string_schema(80, 0)),
    "critique": make_object_schema(
        problems=make_array_schema(make_string_schema(60, 8), 2, 0),
        good_enough=make_enum_schema("yes", "no"),
    ),
    "syllabus": make_object_schema(
        sessions=make_array_schema(
            make_object_schema(
                title=make_string_schema(30), concepts=make_array_schema(make_string_schema(20), 2)
            ),
            2,
        )
    ),
    "arguments": make_object_schema(
        city=make_string_schema(30),
        days={"type": "integer", "minimum": 1, "maximum": 14},
        limit=NUMBER,
    ),
    "row": make_object_schema(
        name=make_string_schema(30),
        price=NUMBER,
        sold={"type": "boolean"},
        note=make_string_schema(60),
    ),
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


class Form(StepwiseGenerator):
    """Asks for one value of one schema."""

    templates: ClassVar = {}
    temperature: float = 0.8

    @property
    def max_requests(self) -> int:
        return 2

    @property
    def max_tokens(self) -> int:
        return 300

    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        name, words = unit.seed.passage.text.split("\n", 1)
        found = yield from unit.ask_json(words, SCHEMAS[name], label=name)
        if found is not None:
            unit.add_record([], {"value": found, "schema": name})


def seeds(count: int) -> list[WorkItem]:
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
            WorkItem(Passage(f"d{number}", 0, len(text), text, place, origin=Origin()), "train")
        )
    return made


def work(state: Path, count: int, seconds: float) -> dict[str, dict]:
    """Ask for what is not there yet, until time is over; return what is there."""
    from stillroom.models import open_text_model
    from stillroom.models.hub import DEFAULT_TEACHER

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
                fits = bool(values) and not describe_violation(values[0], SCHEMAS[name])
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
