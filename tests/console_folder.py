"""A folder of runs for the console's tests: an index of hostile texts, a tiny model, records."""

import json

from stillroom.diffusion.model.metadata import DiffusionMetadata
from stillroom.flow import run_recipe
from stillroom.jobs import Job
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


def write(folder, pages):
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def model():
    return scripted_model({"*": SAID})
