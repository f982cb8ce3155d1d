import json

import pytest
from click.testing import CliRunner
from tests.unit.distill.conftest import make_records
from tests.unit.distill.kinds import build, estimate, run

from stillroom.checkpoints import Checkpoint
from stillroom.cli import stillroom
from stillroom.distill.preflight.resources import count_pruned
from stillroom.distill.pruning.student import (
    PruningReport,
    count_parameters_by_part,
    count_student_parameters,
)
from stillroom.distill.settings import PruneSettings
from stillroom.errors import DataError, RecipeError, StillroomError
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.models import load_causal_lm
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.records import Message, Origin, Record, write_records

QUICK = {"baseline": False, "answers": 0, "speed": False}


@pytest.fixture
def make_recipe(teacher_folder, records_file):
    def make(*, kind="distill.logits", **student):
        fields = {"teacher": str(teacher_folder), "records": str(records_file)}
        return build({"kind": kind, **fields, "student": student})

    return make


def call(teacher, records, out, *words, **student):
    settings = [f"student.{name}={value}" for name, value in student.items()]
    words = [f"teacher={teacher}", f"records={records}", "threads=1", *settings, *words]
    return CliRunner().invoke(stillroom, ["run", "distill.prune", *words, "--out", str(out)])


def test_writes_a_checkpoint_and_says_what_was_kept_and_lost(
    tmp_path, teacher_folder, records_file
):
    out = tmp_path / "s"
    sizes = {"layers": 3, "hidden_size": 48, "intermediate_size": 64, "kv_heads": 1}
    done = call(teacher_folder, records_file, out, "--quiet", max_parameters=1, **sizes)
    assert done.exit_code == 0, done.output
    found = read_artifact(out).details
    shape = {"layers": 3, "hidden_size": 48, "intermediate_size": 64}
    assert found["student_shape"] == {**shape, "attention_heads": 2, "kv_heads": 1, "head_dim": 16}
    assert found["calibration"]["kl"] > 0
    assert found["calibration"]["student_loss"] > 0
    model, _ = load_causal_lm(out / "output", dtype="float32", device="cpu")
    assert model.num_parameters() == found["student_parameters"]["all"]
    assert (out / "output" / "README.md").read_text().startswith("---")
    artifact = read_artifact(out)
    assert [parent.role for parent in artifact.parents] == ["teacher", "records"]
    assert artifact.origin["chain"][0]["method"] == "distill.prune"
    assert not verify_artifact(out)
    kept = json.loads((out / "output" / "pruning.json").read_text())
    assert [len(layer) for layer in kept["heads"]] == [2, 2, 2]
    assert [len(layer) for layer in kept["ffn"]] == [64, 64, 64]
    assert {key: value for key, value in kept.items() if key in found} == {
        key: value for key, value in found.items() if key in kept
    }


def test_relative_paths_are_found_again(tmp_path, teacher_folder, records_file, monkeypatch):
    monkeypatch.chdir(teacher_folder.parent)
    out = tmp_path / "s"
    sizes = {"layers": 2, "max_parameters": 1}
    done = call(teacher_folder.name, records_file, out, "--quiet", **sizes)
    assert done.exit_code == 0, done.output
    assert not verify_artifact(out)


def test_prints_a_table_and_refuses_to_overwrite(tmp_path, teacher_folder, records_file):
    arguments = (teacher_folder, records_file, tmp_path / "s")
    done = call(*arguments, max_parameters=0.8)
    assert done.exit_code == 0, done.output
    assert "layers kept: 0, " in done.output
    assert "before any training, on 9 calibration records" in done.output
    before = Checkpoint.open(tmp_path / "s").fingerprint
    again = call(*arguments, prune="width")
    assert isinstance(again.exception, DataError)
    assert Checkpoint.open(tmp_path / "s").fingerprint == before


def test_sizes_that_do_not_fit_leave_nothing(tmp_path, teacher_folder, records_file):
    out = tmp_path / "s"
    done = call(teacher_folder, records_file, out, max_parameters=1, attention_heads=3)
    assert isinstance(done.exception, StillroomError)
    assert done.exception.problems[0].code == "distill.prune-shape"
    assert not list(tmp_path.glob("*s*.partial"))
    assert not out.exists()


def test_settings_are_checked_as_a_recipes_are(tmp_path, teacher_folder, records_file):
    out = tmp_path / "s"
    done = call(teacher_folder, records_file, out, keep="[1, 0]")
    assert isinstance(done.exception, RecipeError)
    assert "'keep' must be layer numbers from 0, ascending" in str(done.exception)


def test_the_same_pruning_gives_the_same_bytes(tmp_path, make_recipe):
    recipe = make_recipe(kind="distill.prune", prune="both", max_parameters=0.6)
    one, two = (run_recipe(recipe, tmp_path / name) for name in ("one", "two"))
    assert one.digest == two.digest


def test_a_resumed_pruning_measures_nothing_twice(tmp_path, make_recipe, monkeypatch):
    from stillroom.distill.pruning import student as prune_job
    from stillroom.distill.pruning import student as start

    recipe = make_recipe(kind="distill.prune", prune="both", max_parameters=0.6)
    whole = run_recipe(recipe, tmp_path / "whole")

    def fail(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prune_job, "_measure", fail)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, tmp_path / "cut")
    monkeypatch.setattr(start, "plan_student", fail)
    resumed = run_recipe(recipe, tmp_path / "cut", resume=True)
    assert resumed.digest == whole.digest


def test_licenses_of_records_come_along(tmp_path, teacher_folder):
    origin = Origin("human", license="CC-BY-4.0")
    records = [Record(record.messages, record.fields, origin=origin) for record in make_records(6)]
    write_records(tmp_path / "r.jsonl", records)
    recipe = build(
        {
            "kind": "distill.prune",
            "teacher": str(teacher_folder),
            "records": str(tmp_path / "r.jsonl"),
            "student": {"layers": 2, "max_parameters": 1.0},
        }
    )
    artifact = run_recipe(recipe, tmp_path / "s")
    assert artifact.origin["license"] == "CC-BY-4.0"
    report = PruningReport(json.loads((tmp_path / "s/output/pruning.json").read_text()))
    assert report.values["calibration"]["records"] <= 16


@pytest.mark.parametrize(
    "student",
    [
        pytest.param({"prune": "width", "max_parameters": 0.7}, marks=pytest.mark.slow),
        {"prune": "both", "max_parameters": 0.5, "choose": "kl"},
        {"layers": 3, "intermediate_size": 64, "max_parameters": 1.0},
    ],
    ids=str,
)
def test_a_distillation_starts_from_it_and_comes_nearer(tmp_path, make_recipe, student):
    fast = {"steps": 8, "batch_size": 4, "threads": 1, "learning_rate": 3e-3}
    recipe = make_recipe(**student)
    recipe = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update=fast),
            "fidelity": recipe.fidelity.model_copy(update=QUICK),
        }
    )
    job = Job.start(tmp_path / "out", "kind: test\n")
    try:
        artifact = run(recipe, job)
    finally:
        job.close()
    summary = artifact.details["fidelity"]["summary"]
    assert summary["final"]["kl"]["value"] < summary["initial"]["kl"]["value"]
    assert artifact.details["student_shape"]["layers"] == len(artifact.details["layers_kept"])
    teacher = Checkpoint.open(tmp_path / recipe.teacher)
    planned = count_student_parameters(teacher, recipe.student)
    assert artifact.details["parameters"] == planned
    assert count_pruned(recipe.teacher, 1, recipe.student) == planned
    kept = json.loads((tmp_path / "out" / "output" / "pruning.json").read_text())
    assert kept["layers"] == artifact.details["layers_kept"]


def test_check_counts_the_student_it_will_make(make_recipe):
    large, small = (make_recipe(prune="width", max_parameters=share) for share in (0.9, 0.5))
    assert estimate(large).memory_bytes > estimate(small).memory_bytes
    with pytest.raises(RecipeError) as caught:
        estimate(make_recipe(attention_heads=3, max_parameters=1.0))
    assert caught.value.problems[0].code == "distill.prune-shape"


def test_check_counts_the_time_of_measuring(make_recipe):
    def seconds(**student):
        return estimate(make_recipe(layers=2, max_parameters=1.0, **student)).seconds

    assert seconds(choose="influence") < seconds(choose="kl")
    settings = PruneSettings(layers=2, choose="kl", prune="width")
    assert settings.count_passes(4) == 4 + 2
    assert PruneSettings(layers=2, choose="kl").count_passes(4) == 4
    assert PruneSettings(keep=(0, 1)).count_passes(4) == 0


def test_the_teacher_itself_may_be_the_student(tmp_path, teacher_folder, records_file):
    recipe = build(
        {
            "teacher": str(teacher_folder),
            "records": str(records_file),
            "student": str(teacher_folder),
            "train": {"steps": 1, "batch_size": 2, "threads": 1},
            "fidelity": QUICK,
        }
    )
    job = Job.start(tmp_path / "out", "kind: test\n")
    try:
        artifact = run(recipe, job)
    finally:
        job.close()
    assert artifact.details["fidelity"]["summary"]["initial"]["kl"]["value"] < 1e-6


def test_parts_add_up(teacher_folder):
    checkpoint = Checkpoint.open(teacher_folder)
    parts = count_parameters_by_part(checkpoint)
    assert sum(parts.values()) == checkpoint.parameters
    assert set(parts) == {"attention", "embeddings", "feed-forward", "norms"}
    settings = PruneSettings(prune="width", max_parameters=0.7)
    assert count_student_parameters(checkpoint, settings) <= 0.7 * checkpoint.parameters


def test_a_plain_text_is_a_record(tmp_path, teacher_folder):
    write_records(
        tmp_path / "r.jsonl", [Record((Message("assistant", f"{n} bees"),)) for n in range(9)]
    )
    paths = (teacher_folder, tmp_path / "r.jsonl", tmp_path / "s")
    done = call(*paths, "--quiet", layers=2, max_parameters=1)
    assert done.exit_code == 0, done.output
