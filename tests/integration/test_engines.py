"""The same recipes on another engine: the same bytes, and what the workers were given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tests.engine_works import PicklingEngine
from tests.integration.main_job import digests, write_documents
from tests.unit.forensics.media.test_video import wav, write_clip
from tests.unit.synth.conftest import run_in
from tests.unit.text.parsers.test_office import make_pdf

from stillroom.errors import MissingExtraError, ResourceError
from stillroom.flow.job import run_job
from stillroom.flow.run import run_recipe
from stillroom.forensics.c2pa.signature import init_ca, sign_file
from stillroom.forensics.check.check import FileCheckTask, check_file, check_files, list_media
from stillroom.forensics.labeling.image import GeneratedImage, LabeledImageWriter
from stillroom.forensics.labeling.lab import open_lab
from stillroom.forensics.labeling.lookup import refuse_lab_file
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.forensics.watermark.image import ImageWatermark
from stillroom.jobs import Job
from stillroom.provenance import read_artifact
from stillroom.recipes import dump_recipe, parse_recipe
from stillroom.synth.dedup.deduplication_job import deduplicate
from stillroom.synth.jobs.dedup import DedupRecipe
from stillroom.text import reader

GRAPH = """
version: 1
kind: synth.records
index: index
model: scripted:{folder}/script.json
held_out: 0.3
pipeline:
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
  index: {{kind: rag.index, documents: documents, embedder: "builtin:static"}}
  records:
    kind: synth.records
    index: {{from: index}}
    model: "scripted:{folder}/script.json"
    pipeline:
      generator: {{name: grounded_qa, openings: false}}
      filters: [shape, question_form, grounded, duplicate]
    num_records: {{train: 16, held_out: 6}}
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

    monkeypatch.setattr("stillroom.flow.pipeline.open_engine", open_engine)
    return made


def test_a_chain_on_other_workers_gives_the_same_bytes(world, engine):
    run_recipe(flow(world, "ray"), world / "there")

    assert digests(world / "there") == digests(world / "local")
    given = engine.count()
    assert given["IngestTask"] == 8  # every document
    assert given["_WorkerModel"] >= 11  # 22 records, of which a unit of work makes two at most
    assert given["_FilterTask"] >= 11
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
    assert engine.count()["_FilterTask"] > 0


def test_documents_that_are_refused_here_are_refused_alike_on_other_workers(tmp_path, monkeypatch):
    """Whatever a file's own error is, it costs that file; only DataError was taken for one."""
    monkeypatch.setenv("STILLROOM_LAB", str(tmp_path / "lab"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    papers = Path("papers")
    papers.mkdir()
    for name in ("good.md", "large.md", "lacking.md", "later.md"):
        (papers / name).write_text(f"# {name}\n\nThe {name} file tells of rivers and mills.\n")
    (papers / "empty.txt").write_text("")
    init_ca(tmp_path / "ca")
    (tmp_path / "made.pdf").write_bytes(make_pdf(["The made report counts cod."]))
    sign_file(
        tmp_path / "made.pdf",
        papers / "made.pdf",
        tmp_path / "ca",
        made_by="a generator",
        refuse=refuse_lab_file,
    )
    read = reader._read_file

    def read_or_not(path, name, limits):
        if name == "large.md":
            raise ResourceError("the file does not fit into memory", code="document.memory")
        if name == "lacking.md":
            raise MissingExtraError.of("pymupdf", "documents", "this format")
        return read(path, name, limits)

    monkeypatch.setattr(reader, "_read_file", read_or_not)
    text = 'kind: rag.index\ndocuments: papers\nembedder: "builtin:static"\nmax_failed: 0.5\n'
    recipe = parse_recipe(text)
    made, said = {}, {}
    engine = PicklingEngine(tmp_path / "elsewhere")
    for name, chosen in (("here", None), ("there", engine)):
        job = Job.start(tmp_path / name, dump_recipe(recipe))
        said[name] = []
        monkeypatch.setattr(job, "say", said[name].append)
        monkeypatch.setattr(job, "warn", said[name].append)
        made[name] = run_job(recipe, job, chosen)
    engine.close()
    assert made["there"].digest == made["here"].digest
    assert said["there"] == said["here"]
    assert any("composed by a program" in line for line in said["there"])
    failed = read_artifact(tmp_path / "there").details["failed"]
    assert {one["path"]: one["code"] for one in failed} == {
        "empty.txt": "document.no-text",
        "lacking.md": "extra.missing",
        "large.md": "document.memory",
    }
    assert engine.count()["IngestTask"] == 6


def test_duplicates_are_found_alike_whoever_reads_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.synth.dedup.deduplication_job._PIECE_BYTES", 700)
    lines = []
    for number in range(60):
        text = " ".join(f"word{(number % 20) * 7 + at}" for at in range(12))
        lines.append(json.dumps({"messages": [{"role": "assistant", "content": text}]}))
        lines += ["", "{broken"] if number % 25 == 7 else []
    (tmp_path / "one.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "two.jsonl").write_text("\ufeff" + "\n".join(lines[::-1]))
    plan = DedupRecipe(records=(str(tmp_path / "one.jsonl"), str(tmp_path / "two.jsonl")))
    engine = PicklingEngine()

    here = run_in(tmp_path / "here", deduplicate, plan)
    there = run_in(tmp_path / "there", deduplicate, plan, engine=engine)
    counts = here.details
    assert counts == there.details
    assert counts["fell"] == 100
    assert counts["unreadable"] == 6
    assert there.digest == here.digest
    assert engine.count()["_ReadTask"] > 10


def test_files_that_are_named_from_here_are_found_by_workers_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    row = {"messages": [{"role": "assistant", "content": "one two three four five six"}]}
    (tmp_path / "one.jsonl").write_text(2 * (json.dumps(row) + "\n") + "{broken\n")
    engine = PicklingEngine(tmp_path / "elsewhere")
    plan = DedupRecipe(records=("one.jsonl",))
    here = run_in(tmp_path / "here", deduplicate, plan)
    there = run_in(tmp_path / "there", deduplicate, plan, engine=engine)
    counts = here.details
    assert counts == there.details
    assert counts["fell"] == 1
    assert there.digest == here.digest


@pytest.fixture
def media(tmp_path, monkeypatch):
    """A lab's picture, clip and recording, one of each without its mark, and what is damaged."""
    monkeypatch.setenv("STILLROOM_LAB", str(tmp_path / "lab"))
    monkeypatch.chdir(tmp_path)
    lab, folder = open_lab(), Path("media")
    folder.mkdir()
    plain, face = draw_face(7, 1, 160).image, draw_face(7, 0, 160).image
    kind = "compositeWithTrainedAlgorithmicMedia"
    LabeledImageWriter(lab).write(GeneratedImage(face, "sbi", 1, "run", kind), folder / "lab.jpg")
    Image.fromarray(plain).save(folder / "plain.png")
    marked = ImageWatermark(lab.key).embed(face, 77, psnr=38)
    write_clip(folder / "lab.mp4", [plain] * 10 + [marked] * 10)
    wav(folder / "voice.wav", 0.4 * np.sin(np.arange(16000) * 0.3))
    (folder / "cut.mp4").write_bytes((folder / "lab.mp4").read_bytes()[:600])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return lab, [*list_media([folder]).media, folder / "none.png"]


def test_files_are_checked_alike_on_other_workers(media, tmp_path):
    lab, paths = media
    (tmp_path / "elsewhere").mkdir()
    engine = PicklingEngine(tmp_path / "elsewhere")
    here = [check_file(path, lab=lab) for path in paths]
    there = list(check_files(FileCheckTask(()), paths, engine, lab=lab))
    assert [one.to_json() for one in there] == [one.to_json() for one in here]
    assert [one.path.name for one in here if one.trace is not None and one.trace.watermark] == [
        "lab.jpg",
        "lab.mp4",
    ]
    assert engine.count() == {"FileCheckTask": 7}


def test_no_key_of_the_lab_leaves_the_process(media):
    lab, paths = media
    engine = PicklingEngine()
    list(check_files(FileCheckTask(()), paths[:2], engine, lab=lab))
    signing = "".join(lab.signer.key.splitlines()[1:-1])
    sent = bytes(engine.sent).replace(b"\n", b"")
    assert lab.trust.anchors.encode().replace(b"\n", b"") in sent
    assert lab.key not in bytes(engine.sent)
    assert signing.encode() not in sent
    assert b"PRIVATE KEY" not in sent


def test_a_file_that_is_another_on_the_worker_is_not_called_checked(media):
    lab, paths = media

    class Changing(PicklingEngine):
        def call(self, work, block):
            found = super().call(work, block)
            block[0].write_bytes(block[0].read_bytes() + b"more")
            return found

    (one,) = check_files(FileCheckTask(()), [paths[-2]], Changing(), lab=lab)
    assert one.error == "it is not the file that a worker checked"


def test_forgeries_made_elsewhere_have_the_same_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_LAB", str(tmp_path / "lab"))
    recipe = parse_recipe("version: 1\nkind: forensics.image_set\ncount: 2\nimage_size: 128\n")
    made = {}
    engine = PicklingEngine()
    for name, chosen in (("here", None), ("there", engine)):
        job = Job.start(tmp_path / name, dump_recipe(recipe))
        made[name] = run_job(recipe, job, chosen).digest
    assert made["here"] == made["there"]
    assert engine.count() == {"_ForgeryTask": 2}
