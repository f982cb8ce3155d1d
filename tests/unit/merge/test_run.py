import json
import os
import shutil
import signal
import sys
import time

import pytest
from tests.processes import Process, run_process

from stillroom.checkpoints import Checkpoint
from stillroom.errors import Cancelled, CheckpointError
from stillroom.flow.job import estimate_job
from stillroom.jobs import Job
from stillroom.merge.engine.merge import merge_checkpoints, open_merge
from stillroom.merge.jobs.weights import MergeWeightsRecipe, estimate, run
from stillroom.merge.verification import verify_merge
from stillroom.recipes import build_recipe, dump_recipe

SLOW_RUN = """
import sys, time
from pathlib import Path
import stillroom.merge.engine.executor as stream
from stillroom.jobs import Job
from stillroom.merge.jobs.weights import MergeWeightsRecipe
from stillroom.merge.jobs.weights import run
from stillroom.recipes import build_recipe, dump_recipe
write = stream.CheckpointWriter.place_rows
def slow(self, *args):
    time.sleep(float(sys.argv[3]))
    write(self, *args)
stream.CheckpointWriter.place_rows = slow
recipe = MergeWeightsRecipe.model_validate_json(sys.argv[1])
run(recipe, Job.start(Path(sys.argv[2]), "recipe", resume=True))
"""


def recipe_for(family, name="ties", **settings):
    base, parents = family
    return MergeWeightsRecipe.model_validate(
        {"method": name, "base_model": str(base), "models": [{"model": str(p)} for p in parents]}
        | settings
    )


def test_the_artifact_names_its_parents_and_every_tensor(family, tmp_path):
    recipe = recipe_for(family, exclude=["*norm*"])
    artifact = run(recipe, Job.start(tmp_path / "out", "recipe"))
    assert artifact.kind == "checkpoint"
    assert [parent.role for parent in artifact.parents] == ["base", "model", "model", "model"]
    assert artifact.parents[0].digest == Checkpoint.open(family[0]).fingerprint
    merged = Checkpoint.open(tmp_path / "out")
    assert artifact.details["fingerprint"] == merged.fingerprint
    assert artifact.details["merged"] + len(artifact.details["copied"]) == len(merged.names())
    assert artifact.origin["chain"][-1]["method"] == "merge.methods.ties"
    card = (tmp_path / "out" / "output" / "README.md").read_text()
    assert "base_model_relation: merge" in card
    assert "arXiv:2306.01708" in card


@pytest.mark.parametrize(
    ("name", "method", "weights", "models", "equals"),
    [
        ("task_arithmetic", {}, (0, 0, 0), 3, "base"),
        ("task_arithmetic", {"scale": 0}, (1, 1, 1), 3, "base"),
        ("ties", {"density": 0}, (1, 1, 1), 3, "base"),
        ("slerp", {"t": 1}, (1, 1), 2, "tune2"),
        ("linear", {}, (0, 1, 0), 3, "tune2"),
        ("ties", {}, (1, 1, 1), 3, ""),
    ],
)
def test_a_merge_that_leaves_one_model_as_it_was_warns(
    name, method, weights, models, equals, family, tmp_path, capsys
):
    base, parents = family
    listed = [
        {"model": str(parent), "weight": weight}
        for parent, weight in zip(parents[:models], weights, strict=True)
    ]
    more = {} if name in {"slerp", "linear"} else {"base_model": str(base)}
    recipe = MergeWeightsRecipe.model_validate(
        {"method": {"name": name, **method}, "models": listed} | more
    )
    warnings = run(recipe, Job.start(tmp_path / "out", "recipe")).details.get("warnings", [])
    card = (tmp_path / "out" / "output" / "README.md").read_text()
    assert len(warnings) == bool(equals)
    assert ("Warning: the result equals" in card) == bool(equals)
    assert all(f"the result equals {equals} in all" in warning for warning in warnings)


def test_a_merge_that_copies_every_tensor_warns(family, tmp_path):
    recipe = recipe_for(family, exclude=["*"])
    artifact = run(recipe, Job.start(tmp_path / "out", "recipe"))
    (warning,) = artifact.details["warnings"]
    assert warning.startswith("no tensor was merged: all are copies of ")


def test_the_job_and_the_plain_function_give_the_same_weights(family, tmp_path):
    artifact = run(recipe_for(family), Job.start(tmp_path / "out", "recipe"))
    plain = merge_checkpoints("ties", *family, tmp_path / "plain")
    assert artifact.details["fingerprint"] == plain.fingerprint


@pytest.mark.parametrize("name", ["ties", "dare_linear"])
def test_kill_and_resume_give_the_same_bytes(name, family, tmp_path):
    recipe = recipe_for(family, name, out={"shard_size": 100_000})
    straight = run(recipe, Job.start(tmp_path / "straight", "recipe"))
    command = [sys.executable, "-c", SLOW_RUN, recipe.model_dump_json(), str(tmp_path / "killed")]
    victim = Process([*command, "0.05"])
    journal = tmp_path / ".killed.partial" / "journals" / "tensors.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and victim.poll() is None:
        if journal.exists() and len(journal.read_bytes().splitlines()) >= 5:
            break
        time.sleep(0.01)
    assert victim.poll() is None, "the run ended before it could be killed"
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    done = len(journal.read_bytes().splitlines())
    assert 5 <= done < 20
    assert run_process([*command, "0"]).returncode == 0
    artifact = json.loads((tmp_path / "killed" / "artifact.json").read_text())
    assert artifact["digest"] == straight.digest


def test_resume_writes_again_what_was_damaged_meanwhile(family, tmp_path):
    recipe = recipe_for(family)
    straight = run(recipe, Job.start(tmp_path / "straight", "recipe"))
    job = Job.start(tmp_path / "out", "recipe")
    journal, check = job.journal("tensors"), job.check_cancelled

    def cancel_halfway():
        if len(journal) > 10:
            job.cancel()
        check()

    job.check_cancelled = cancel_halfway
    with pytest.raises(Cancelled):
        run(recipe, job)
    job.close()
    weights = job.output / "model.safetensors"
    data = bytearray(weights.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[header : header + 4000] = b"\xff" * 4000
    weights.write_bytes(data)
    again = run(recipe, Job.start(tmp_path / "out", "recipe", resume=True))
    assert again.digest == straight.digest


def test_plan_and_estimate_read_headers_only(family):
    recipe = recipe_for(family, exclude=["*norm*"])
    plan = open_merge(recipe).plan()
    size = Checkpoint.open(family[0]).size_bytes
    assert plan.written_bytes == size
    assert plan.read_bytes < 4 * size
    assert "copies model.norm.weight" in str(plan)
    assert plan.to_json()["merged"] == plan.count(merged=True)
    assert estimate(recipe).disk_bytes == size


def test_an_estimate_does_not_need_what_is_not_there_yet():
    settings = {
        "method": "linear",
        "models": [{"model": "step:student", "last_checkpoints": 2}],
        "on_too_few": "continue",
    }
    for kind, more in (("weights", {}), ("select", {"select": {"records": "step:records"}})):
        recipe = build_recipe({"version": 1, "kind": f"merge.{kind}"} | settings | more)
        assert estimate_job(recipe).memory_bytes > 0


def run_of_three(checkpoint, **settings):
    models = [{"model": str(checkpoint), "last_checkpoints": 3}]
    return MergeWeightsRecipe.model_validate(
        {"method": "run_average", "models": models, **settings}
    )


def test_a_run_too_short_is_refused(family, tmp_path):
    recipe = run_of_three(family[0])
    job = Job.start(tmp_path / "out", "recipe")
    with pytest.raises(CheckpointError) as caught:
        run(recipe, job)
    job.close()
    assert caught.value.code == "merge.run-too-short"


def test_a_run_too_short_is_averaged_as_it_is_where_the_recipe_goes_on(family, tmp_path):
    base, tuned = family
    student = shutil.copytree(tuned[0], tmp_path / "student")
    shutil.copytree(base, student / "candidates" / "5")
    recipe = run_of_three(student, on_too_few="continue")
    artifact = run(recipe, Job.start(tmp_path / "out", dump_recipe(recipe)))
    assert "left 2 of 3 checkpoints" in (tmp_path / "out" / "events.jsonl").read_text()
    assert len(artifact.details["sources"]) == 2
    assert verify_merge(tmp_path / "out", share=1.0).differences == ()
