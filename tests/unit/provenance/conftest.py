"""A small run made by real jobs: documents, an index, records, a student, a merge, a report."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stillroom.jobs import Job
from stillroom.provenance import (
    Artifact,
    Parent,
    digest_file,
    make_parent,
    read_artifact,
    resolve_parent,
)
from stillroom.provenance.artifact import FileEntry
from stillroom.records import (
    Anchor,
    Document,
    Link,
    Message,
    Origin,
    Passage,
    Record,
    write_records,
)

TEXTS = {"one.md": "Ärger and joy. Bread needs salt.", "deep/two.md": "Second text."}


@dataclass
class Run:
    root: Path
    documents: Path
    index: Path
    synth: Path
    distill: Path
    merge: Path
    passages: list[Passage]
    records: list[Record]


def make_documents(folder: Path) -> tuple[list[Document], list[Passage]]:
    documents, passages = [], []
    for name, text in TEXTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        size = len(text.encode())
        document = Document(
            name,
            digest_file(path),
            "text/markdown",
            text,
            (Anchor(0, len(text), 0, size, is_exact=True),),
            origin=Origin("human", license="CC0-1.0"),
        )
        start = text.find("Bread") if "Bread" in text else 0
        documents.append(document)
        passages.append(
            Passage(
                document.id,
                start,
                len(text),
                text[start:],
                document.locate(start, len(text)),
                origin=document.origin.then(Link("text.chunkers.heading", "", (document.id,))),
            )
        )
    return documents, passages


def write_lines(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run that a test may spoil."""
    old = made.root.parent
    shutil.copytree(made.root, tmp_path / "run")
    shutil.copytree(made.documents, tmp_path / "documents")
    for name in ("index", "synth", "distill", "merge", "."):  # parents before their children
        _restate(tmp_path / "run" / ("" if name == "." else f"steps/{name}"), old, tmp_path)
    places = {
        name: tmp_path / place.relative_to(old)
        for name, place in vars(made).items()
        if isinstance(place, Path)
    }
    return replace(made, **places)


def _restate(folder: Path, old: Path, new: Path) -> None:
    """State the place of a copied run anew, with the claims that follow from it."""
    path = folder / "artifact.json"
    path.write_text(path.read_text().replace(str(old), str(new)))
    artifact = read_artifact(folder)
    parents = tuple(
        replace(parent, claim=read_artifact(resolve_parent(folder, parent)).claim)
        if parent.claim
        else parent
        for parent in artifact.parents
    )
    path.write_text(json.dumps(replace(artifact, parents=parents).to_json()))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("made")
    root, documents_folder = folder / "run", folder / "documents"
    documents, passages = make_documents(documents_folder)
    steps = root / "steps"

    job = Job.start(steps / "index", "kind: rag.index\n")
    write_lines(job.output / "documents.jsonl", [document.to_json() for document in documents])
    write_lines(job.output / "passages.jsonl", [passage.to_json() for passage in passages])
    job.finish("index", parents=[make_parent("documents", documents_folder, steps / "index")])

    records = [
        Record(
            (Message("user", f"Q{i}?"), Message("assistant", f"A{i}.")),
            {"split": "train"},
            Origin(
                "synthetic",
                (
                    Link("synth.generators.grounded_qa", "model-f00", (passage.id,)),
                    Link("synth.filters.judge", "judge-ba7"),
                ),
                "CC0-1.0",
            ),
        )
        for i, passage in enumerate(passages)
    ]
    job = Job.start(steps / "synth", "kind: synth.records\n")
    write_records(job.output / "records.jsonl", records)
    dropped = Record((Message("user", "bad"),), {}, records[0].origin)
    write_lines(
        job.output / "dropped.jsonl", [{"record": dropped.to_json(), "reason": "too short"}]
    )
    job.finish(
        "records",
        parents=[make_parent("index", steps / "index", steps / "synth")],
        origin={"synthetic": 2},
    )

    job = Job.start(steps / "distill", "kind: distill\n")
    (job.output / "model.safetensors").write_bytes(b"weights")
    job.finish(
        "checkpoint",
        parents=[
            Parent("teacher", "hub:org/teacher", "abc123", "checkpoint"),
            make_parent("records", steps / "synth", steps / "distill"),
        ],
        origin={"kind": "synthetic"},
    )

    job = Job.start(steps / "merge", "kind: merge\n")
    (job.output / "model.safetensors").write_bytes(b"merged")
    job.finish("checkpoint", parents=[make_parent("student", steps / "distill", steps / "merge")])

    (root / "recipe.yaml").write_text("kind: flow\n")
    (root / "steps.json").write_text("{}")
    names = ["index", "synth", "distill", "merge"]
    artifact = Artifact(
        kind="report",
        files=(FileEntry("steps.json", 2, digest_file(root / "steps.json")),),
        timed_files=(FileEntry("recipe.yaml", 11, digest_file(root / "recipe.yaml")),),
        parents=tuple(
            Parent(name, f"steps/{name}", make_parent(name, steps / name, root).digest)
            for name in names
        ),
        recipe_digest=digest_file(root / "recipe.yaml"),
    )
    (root / "artifact.json").write_text(json.dumps(artifact.to_json()))
    return Run(
        root,
        documents_folder,
        steps / "index",
        steps / "synth",
        steps / "distill",
        steps / "merge",
        passages,
        [*records, dropped],
    )
