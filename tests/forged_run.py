"""A signed run of four kinds of jobs, and what makes digests fit after files of it were changed."""

import json
from dataclasses import replace

from stillroom.provenance import digest_file, list_run_folders, read_artifact
from stillroom.provenance.artifact import FileEntry, list_files
from stillroom.provenance.signing import sign_artifact
from stillroom.recipes import parse_recipe
from stillroom.testing import tiny_checkpoint
from tests.integration.main_job import write_documents
from tests.unit.merge.conftest import fine_tune

FLOW = """\
kind: flow
inputs: {documents: FOLDER/documents, teacher: "scripted:FOLDER/script.json"}
steps:
  index: {kind: rag.index, documents: {from: inputs.documents}, embedder: builtin:static}
  records:
    kind: synth.records
    index: {from: index}
    model: {from: inputs.teacher}
    pipeline:
      generator: {name: grounded_qa, openings: false}
      filters: [shape, question_form, standalone, grounded, duplicate]
      include_passages: 3
    held_out: 0
    num_records: {train: 8, held_out: 0}
  merged:
    kind: merge.weights
    method: linear
    models: [{model: FOLDER/tune1}, {model: FOLDER/tune2}]
    smoke_test: null
  report:
    kind: rag.answer_evaluation
    index: {from: index}
    questions: {from: records}
    model: {from: inputs.teacher}
    pipelines: ["keyword=>generate"]
"""


def write_inputs(folder):
    """Write what the recipe reads; return the script of its teacher."""
    script = {
        fact: " What is it?" if "jugs" in fact else question  # some records are dropped
        for fact, question in write_documents(folder / "documents").items()
    }
    (folder / "script.json").write_text(json.dumps(script))
    base = tiny_checkpoint(folder / "base")
    for seed in (1, 2, 3):
        fine_tune(base, folder / f"tune{seed}", seed)
    return script


def read_flow(folder, *overrides):
    """Return the recipe over the inputs of a folder."""
    return parse_recipe(FLOW.replace("FOLDER", str(folder)), "recipe", overrides, folder=folder)


def step(run, name):
    """Return the folder of a step of a run."""
    return next((run / "steps").glob(f"{name}-*"))


def seal(run, signer=None):
    """Make digests, claims and signatures fit the files, as whoever forged them would."""
    steps = json.loads((run / "steps.json").read_text())
    for entry in steps.values():
        entry["digest"] = reseal(run / entry["folder"]).digest
    (run / "steps.json").write_text(json.dumps(steps, indent=1))
    reseal(run)
    if signer is not None:
        for folder in list_run_folders(run):
            sign_artifact(folder, signer)


def reseal(folder):
    """Write and return the artifact that fits the files of one folder."""
    artifact = read_artifact(folder)
    parents = []
    for parent in artifact.parents:
        if (folder / parent.path / "artifact.json").is_file() and parent.digest:
            made = read_artifact(folder / parent.path)
            parent = replace(parent, digest=made.digest, claim=made.claim)
        parents.append(parent)
    there = {entry.path: entry for entry in list_files(folder)}
    timed = {entry.path for entry in artifact.timed_files}
    fresh = {
        entry.path: there.get(entry.path)
        or FileEntry(
            entry.path, (folder / entry.path).stat().st_size, digest_file(folder / entry.path)
        )
        for entry in (*artifact.files, *artifact.timed_files)
        if (folder / entry.path).exists()
    }
    fresh |= {path: entry for path, entry in there.items() if path not in fresh}
    sealed = replace(
        artifact,
        files=tuple(entry for path, entry in fresh.items() if path not in timed),
        timed_files=tuple(entry for path, entry in fresh.items() if path in timed),
        parents=tuple(parents),
        recipe_digest=artifact.recipe_digest and digest_file(folder / "recipe.yaml"),
    )
    (folder / "artifact.json").write_text(json.dumps(sealed.to_json(), indent=1))
    return sealed
