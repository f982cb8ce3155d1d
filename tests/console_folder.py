"""A folder of runs for the console's tests: an index of hostile texts, a tiny model, records."""

import json

from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.rag.recipe import RagRecipe
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
    recipe = RagRecipe(
        documents=str(folder / "documents"),
        embedder="static",
        origin={"kind": "human", "license": "CC0-1.0"},
    )
    run_recipe(recipe, run / "steps/index")
    build_checkpoint(run / "steps/model")
    return folder


def build_tenants(place):
    """Return a folder with an index in which each of two tenants has one document."""
    folder = place / "tenants"
    write(
        folder / "documents", {f"{one}.txt": f"The canary of {one} is {one}word.\n" for one in "ab"}
    )
    told = [{"path": f"{one}.txt", "tenant": one, "labels": ["public"]} for one in "ab"]
    (place / "told.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    recipe = RagRecipe(
        documents=str(folder / "documents"),
        embedder="static",
        access="tenants",
        metadata=str(place / "told.jsonl"),
    )
    run_recipe(recipe, folder / "index")
    return folder


def build_checkpoint(out):
    """Leave a checkpoint of two layers as a job's artifact."""
    job = Job.start(out, "version: 1\nkind: distill\n")
    tiny_checkpoint(job.output)
    job.finish("checkpoint", origin={"kind": "synthetic", "license": "MIT"})


def write(folder, pages):
    folder.mkdir(parents=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def model():
    return scripted_model({"*": SAID})
