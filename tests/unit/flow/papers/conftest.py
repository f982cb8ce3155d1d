"""A small run with everything that papers tell: documents, records, a student, a report."""

import json
from dataclasses import replace

import pytest

from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.provenance import make_parent, read_artifact, read_ledger
from stillroom.provenance.artifact import Parent
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.records import Link, Message, Origin, Record, write_records
from stillroom.testing import tiny_checkpoint

TEACHER = "hub:Maker/Large@0a1b2c"
PRINT = "f" * 64
BASE = Parent("teacher", TEACHER, PRINT, "checkpoint")
METRICS = [
    {"name": "answers/student/closed/f1", "value": 0.4, "low": 0.3, "high": 0.5, "n": 20},
    {"name": "answers/student/closed/em", "value": 0.1, "low": float("nan"), "high": None, "n": 1},
    {"name": "student/tokens_per_second", "value": 90.0, "low": None, "high": None, "n": 1},
]
STUDENT = """version: 1
kind: distill.supervised
seed: 3
teacher: {teacher}
student: {teacher}
records: {records}
"""
RECORDS = """version: 1
kind: synth.records
seed: 3
index: {index}
model: {teacher}
pipeline: {{generator: grounded_qa, filters: [injection, duplicate]}}
num_records: {{train: 3, held_out: 0}}
"""


def build_run(place, *, license="CC0-1.0"):
    """Leave a run of an index, records and a student, and return its folder."""
    documents = place / "private" / "papers"
    documents.mkdir(parents=True)
    (documents / "rivers.txt").write_text("The river rises in the north.\n", encoding="utf-8")
    (documents / "ferry.md").write_text("# Ferry\n\nThe ferry sails at noon.\n", encoding="utf-8")
    run = place / "run"
    job = Job.start(run, "version: 1\nkind: flow\n")
    steps = job.work / "steps"
    origin = {"kind": "human", "license": license}
    recipe = IndexRecipe(documents=str(documents), embedder="static", origin=origin)
    run_recipe(recipe, steps / "index")
    _build_records(steps / "records", steps / "index", license)
    _build_student(steps / "student", steps / "records", license)
    told = {"metrics": [{**one, "unit": ""} for one in METRICS]}
    (job.work / "report.json").write_text(json.dumps(told), encoding="utf-8")
    names = ("index", "records", "student")
    made = {name: read_artifact(steps / name) for name in names}
    job.finish(
        "report",
        parents=[
            Parent(name, f"steps/{name}", one.digest, one.kind, one.claim)
            for name, one in made.items()
        ],
        details={
            "steps": {name: f"steps/{name}" for name in names},
            "answer": {"index": "index", "model": "student"},
        },
    )
    return run


def _build_records(out, index, license):
    job = Job.start(out, RECORDS.format(index=index, teacher=TEACHER))
    document = next(iter(read_ledger(index / "output", "documents")))["id"]
    link = Link("synth.generators.grounded_qa", PRINT, (document,))
    made = [
        Record(
            (Message("user", f"Question {at}?"), Message("assistant", "Noon.")),
            {"split": "train"},
            Origin("synthetic" if at else "human", (link,) if at else (), license),
        )
        for at in range(3)
    ]
    write_records(job.output / "records.jsonl", made)
    counts = {"train": {"dropped": {"duplicate": 4}}}
    job.finish(
        "records",
        parents=[make_parent("passages", index, out), BASE],
        origin={"kind": "synthetic", "license": license},
        details={"counts": counts},
    )


def _build_student(out, records, license):
    job = Job.start(out, STUDENT.format(teacher=TEACHER, records=records))
    tiny_checkpoint(job.output, hidden=32)
    chain = [{"method": "distill.methods.sft", "model": PRINT, "parents": []}]
    job.finish(
        "checkpoint",
        parents=[make_parent("records", records, out), replace(BASE, role="student")],
        origin={"kind": "synthetic", "chain": chain, "license": license},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = build_run(tmp_path_factory.mktemp("papers"))
    assert read_artifact(run).digest
    return run
