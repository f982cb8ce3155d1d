"""The same recipes on another engine: the same bytes, and what the workers were given."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from tests.engine_works import PicklingEngine
from tests.integration.main_job import digests, write_documents

from stillroom.flow.run import run_job, run_recipe
from stillroom.forensics.checking import Checking, check_file
from stillroom.jobs import Job
from stillroom.provenance import read_artifact
from stillroom.recipes import dump_recipe, parse_recipe
from stillroom.synth.deduplication import Deduplication, deduplicate

GRAPH = """
version: 1
kind: synth
index: index
model: scripted:{folder}/script.json
held_out: 0.3
steps:
  clean: {{from: index, filters: [shape, language, gopher_quality]}}
  ask: {{from: clean, generator: grounded_qa}}
  keep: {{from: ask, filters: [shape, grounded, duplicate]}}
"""


def flow(folder, engine="local"):
    text = f"""
version: 1
kind: flow
engine: {json.dumps(engine)}
steps:
  index: {{kind: rag, documents: documents, embedder: "builtin:static"}}
  records:
    kind: synth
    index: {{from: index}}
    model: "scripted:{folder}/script.json"
    target: {{train: 16, held_out: 6}}
"""
    return parse_recipe(text, "flow.yaml", folder=folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    (folder / "script.json").write_text(json.dumps(write_documents(folder / "documents")))
    run_recipe(flow(folder), folder / "local")
    return folder


@pytest.fixture
def engine(monkeypatch):
    """Let every recipe that asks for Ray have an engine that only copies; Ray need not be there."""
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    made = PicklingEngine()
    from contextlib import contextmanager

    @contextmanager
    def open_engine(choice, tell=print):
        yield made

    monkeypatch.setattr("stillroom.flow.chain.open_engine", open_engine)
    return made


def test_a_chain_on_other_workers_gives_the_same_bytes(world, engine):
    run_recipe(flow(world, "ray"), world / "there")

    assert digests(world / "there") == digests(world / "local")
    given = engine.count()
    assert given["Preparing"] == 8  # every document
    assert given["_Answering"] >= 22
    assert given["_Judging"] >= 22
    recipes = [read_artifact(world / name).recipe_digest for name in ("there", "local")]
    assert recipes[0] == recipes[1]  # where the work was done is no part of the recipe
    (step,) = (world / "there" / "steps").glob("index-*")
    events = [json.loads(line) for line in (step / "events.jsonl").read_text().splitlines()]
    assert {"name": "pickling", "workers": 3}.items() <= events[1].items()


def test_a_graph_on_other_workers_gives_the_same_bytes(world):
    (index,) = (world / "local" / "steps").glob("index-*")
    text = GRAPH.format(folder=world).replace("index: index", f"index: {index}", 1)
    recipe = parse_recipe(text, "graph.yaml")
    made = {}
    engine = PicklingEngine()
    for name, chosen in (("one", None), ("two", engine)):
        job = Job.start(world / f"graph-{name}", dump_recipe(recipe))
        made[name] = run_job(recipe, job, chosen).digest
    assert made["one"] == made["two"]
    assert engine.count()["_Judging"] > 0


def test_duplicates_are_found_alike_whoever_reads_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.synth.deduplication._PIECE_BYTES", 700)
    lines = []
    for number in range(60):
        text = " ".join(f"word{(number % 20) * 7 + at}" for at in range(12))
        lines.append(json.dumps({"messages": [{"role": "assistant", "content": text}]}))
        lines += ["", "{broken"] if number % 25 == 7 else []
    (tmp_path / "one.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "two.jsonl").write_text("\ufeff" + "\n".join(lines[::-1]))
    plan = Deduplication((tmp_path / "one.jsonl", tmp_path / "two.jsonl"))
    engine = PicklingEngine()

    here, counts = deduplicate(plan, tmp_path / "here")
    there, same = deduplicate(plan, tmp_path / "there", engine=engine)
    assert counts == same
    assert counts["fell"] == 100
    assert counts["unreadable"] == 6
    assert there.digest == here.digest
    assert engine.count()["_Reading"] > 10


def test_files_are_checked_alike_on_other_workers(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    engine = PicklingEngine()
    work = Checking((), None)
    paths = [tmp_path / "a.jpg", tmp_path / "none.png"]
    assert list(engine.map(work, paths)) == [check_file(path) for path in paths]


def test_forgeries_made_elsewhere_have_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_LAB", str(tmp_path / "lab"))
    recipe = parse_recipe("version: 1\nkind: forensics\ncount: 2\nsize: 128\n")
    made = {}
    engine = PicklingEngine()
    for name, chosen in (("here", None), ("there", engine)):
        job = Job.start(tmp_path / name, dump_recipe(recipe))
        made[name] = run_job(recipe, job, chosen).digest
    assert made["here"] == made["there"]
    assert engine.count() == {"_Forging": 2}
