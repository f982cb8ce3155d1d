"""A folder of runs for the console's tests: an index of hostile texts, a tiny model, records."""

import json
from dataclasses import replace

from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.provenance import Parent, digest_file, list_run_folders, make_parent, read_artifact
from stillroom.provenance.signing import (
    append_claim,
    create_key_pair,
    load_signing_key,
    make_statement,
    sign_artifact,
    sign_statement,
)
from stillroom.provenance.summaries import SUMMARY_TYPE
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.records import Link, Message, Origin, Record, write_records
from stillroom.testing import scripted_model, tiny_checkpoint

KEY = "the-key-of-this-console"
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'
PAGES = {
    "rivers.txt": "The river rises in the north.\nIt ends in the sea.\n",
    "hostile.txt": f"The ferry sails at noon. {HOSTILE}\n",
}
SAID = "The river rises in the north. [1]"


def build_folder(place):
    """Return a folder that holds ``run``, whose index and model are steps of it."""
    folder = place / "served"
    write(place / "secret", {"passwd.txt": "nobody may read this"})
    write(folder / "documents", PAGES)
    run = folder / "run"
    job = Job.start(run, "version: 1\nkind: flow\n")
    steps = {"index": "steps/index", "model": "steps/model"}
    job.finish("report", details={"steps": steps, "answer": {"index": "index", "model": "model"}})
    recipe = IndexRecipe(
        documents=str(folder / "documents"),
        embedder="static",
        origin={"kind": "human", "license": "CC0-1.0"},
    )
    run_recipe(recipe, run / "steps/index")
    build_checkpoint(run / "steps/model")
    build_records(folder / "records")
    build_checkpoint(folder / "other", seed=1)
    build_checkpoint(folder / "third", seed=2)
    build_checkpoint(folder / "diffusion", is_diffusion=True)
    return folder


def build_tenants(place):
    """Return a folder with an index in which each of two tenants has one document."""
    folder = place / "tenants"
    write(
        folder / "documents", {f"{one}.txt": f"The canary of {one} is {one}word.\n" for one in "ab"}
    )
    told = [{"path": f"{one}.txt", "tenant": one, "labels": ["public"]} for one in "ab"]
    (place / "told.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    recipe = IndexRecipe(
        documents=str(folder / "documents"),
        embedder="static",
        access="tenants",
        metadata=str(place / "told.jsonl"),
    )
    run_recipe(recipe, folder / "index")
    return folder


def build_checkpoint(out, *, seed=0, is_diffusion=False):
    """Leave a checkpoint of two layers as a job's artifact."""
    job = Job.start(out, "version: 1\nkind: distill.logits\n")
    tiny_checkpoint(job.output, seed=seed, hidden=32)
    if is_diffusion:
        path = job.output / "config.json"
        told = DiffusionMetadata(mask_token_id=300, end_token_ids=(2,))
        path.write_text(json.dumps(told.to_config(json.loads(path.read_text()))))
    job.finish("checkpoint", origin={"kind": "synthetic", "license": "MIT"})


def build_records(out, count=45):
    """Leave records of a generator, some of people's, and two that were dropped."""
    job = Job.start(out, "version: 1\nkind: synth.records\n")
    made = [make_record(number) for number in range(count)]
    write_records(job.output / "records.jsonl", made)
    fallen = make_record(999)
    rows = [
        {"filter": "judge", "reason": "says nothing", "record": fallen.to_json(), "score": 0.1,
         "split": "train", "text": "", "unit": ""},
        {"filter": "generator", "reason": "no sentence", "record": None, "score": 0.0,
         "split": "train", "text": HOSTILE, "unit": ""},
    ]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (job.output / "dropped.jsonl").write_text(text)
    job.finish("records", origin={"kind": "synthetic", "license": "MIT"})
    return made


def make_record(number):
    question, answer = f"What is number {number}?", f"It is {number}. {HOSTILE}"
    chain = (Link("synth.generators.grounded_qa", "teacher", ("pas-1",)),)
    origin = Origin("synthetic", chain, "MIT") if number % 5 else Origin("human")
    messages = (Message("user", question), Message("assistant", answer))
    return Record(messages, {"question": question, "answer": answer, "split": "train"}, origin)


def build_signed(place):
    """Leave a run whose two steps and itself are signed by Alice; return the folder it lies in.

    ``alice``, ``bob`` and ``eve`` are pairs of keys in ``place``.
    """
    for name in ("alice", "bob", "eve"):
        create_key_pair(place / name)
    run = place / "served" / "run"
    write(place / "served/notes", PAGES)
    job = Job.start(run, "version: 1\nkind: flow\n")
    steps = {name: f"steps/{name}" for name in ("index", "records")}
    job.finish("report", details={"steps": steps})
    recipe = IndexRecipe(
        documents=str(place / "served/notes"),
        embedder="static",
        origin={"kind": "human", "license": "CC0-1.0"},
    )
    run_recipe(recipe, run / "steps/index")
    job = Job.start(run / "steps/records", "version: 1\nkind: synth.records\n")
    write_records(job.output / "records.jsonl", [make_record(1)])
    parent = make_parent("index", run / "steps/index", run / "steps/records")
    far = Parent("teacher", "hub:org/teacher", "", "checkpoint")
    job.finish("records", origin={"kind": "synthetic"}, parents=[parent, far])
    parents = tuple(
        replace(make_parent(name, run / path, run), path=path) for name, path in steps.items()
    )
    made = replace(read_artifact(run), parents=parents)
    (run / "artifact.json").write_text(json.dumps(made.to_json()))
    for folder in list_run_folders(run):
        sign_artifact(folder, load_signing_key(place / "alice.key"))
    return place / "served"


def append_summary(place, signer, *, segments=40, replayed=10, differences=()):
    """Append a signed summary of a replay to the claims of the run of ``build_signed``."""
    run = place / "served" / "run"
    jobs, subject = [], []
    for folder in list_run_folders(run):
        name = folder.relative_to(run.parent).as_posix()
        digest = digest_file(folder / "artifact.json")
        subject.append({"name": f"{name}/artifact.json", "digest": {"sha256": digest}})
        is_open = folder.name == "index"
        jobs.append(
            {
                "job": name,
                "segments": 0 if folder == run else segments,
                "replayed": []
                if is_open or folder == run
                else [f"unit {n}" for n in range(replayed)],
                "open": "it was updated in place" if is_open else "",
                "differences": list(differences) if folder.name == "records" else [],
            }
        )
    predicate = {
        "timeVerified": "2026-11-29T12:00:00Z",
        "verificationResult": "FAILED" if differences else "PASSED",
        "stillroom_replay": {
            "power": f"{replayed} of {segments} segments were recomputed. Such a draw finds much.",
            "jobs": jobs,
        },
    }
    statement = make_statement(subject, SUMMARY_TYPE, predicate)
    append_claim(run, sign_statement(statement, load_signing_key(place / f"{signer}.key")))


def write(folder, pages):
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def model():
    return scripted_model({"*": SAID})
