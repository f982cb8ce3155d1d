"""Trainings are replayed: honest ones without an alarm, forged ones by name."""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.train.conftest import Net, Points, squared_error
from tests.unit.train.forgery import reseal

from stillroom.errors import IntegrityError
from stillroom.jobs import Job, QuietReporter
from stillroom.jobs.journal import read_journal
from stillroom.jobs.segments import ReplayRequest, read_segments
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.recipes import Recipe, dump_recipe
from stillroom.train.data import RecordSource
from stillroom.train.loop import train
from stillroom.train.replay import TrainingReplayer
from stillroom.train.settings import TrainSettings

SETTINGS = TrainSettings(
    steps=12, learning_rate=0.02, precision="float32", threads=1, save_every_s=1e9
)
REPLAYER = TrainingReplayer()


class TinyRecipe(Recipe):
    """Regression of a teacher's outputs; the integers draw teacher, student and records."""

    kind: Literal["test.tiny"] = "test.tiny"
    teacher: int = 0
    student: int = 1
    records: int = 2
    train: TrainSettings = SETTINGS


def run_tiny(recipe: TinyRecipe, job: Job):
    """Train, write the weights, and evaluate, as every kind of training does."""
    torch.manual_seed(recipe.teacher)
    teacher = Net()
    torch.manual_seed(recipe.student)
    student = Net(dropout=0.2)
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(recipe.records))
    targets = teacher(rows).detach()
    source = RecordSource(
        range(len(rows)),
        ids=[str(number) for number in range(len(rows))],
        lengths=[1] * len(rows),
        valid=[1] * len(rows),
        load=lambda group: Points(rows[group], targets[group], list(map(str, group))),
        batch_size=4,
        micro_tokens=3,
        seed=recipe.seed,
    )
    summary = train(student, source, squared_error, recipe.train, job, seed=recipe.seed)
    save_file(student.state_dict(), job.output / "model.safetensors")
    with job.phase("evaluate"):
        job.output.joinpath("loss.txt").write_text(f"{summary.last_loss}\n", encoding="utf-8")
    return job.finish("checkpoint", details={"train": asdict(summary)})


def run_job(recipe: TinyRecipe, job: Job):
    job.segment_journals = REPLAYER.journals
    try:
        return run_tiny(recipe, job)
    finally:
        job.close()


def make(folder: Path, resume: bool = False, **changes) -> Path:
    settings = SETTINGS.model_copy(update=changes.pop("train", {}))
    recipe = TinyRecipe(train=settings, **changes)
    job = Job.start(folder, dump_recipe(recipe), seed=recipe.seed, resume=resume)
    run_job(recipe, job)
    return folder


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("place") / "honest")


@pytest.fixture
def forged(honest, tmp_path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "forged"))


def open_request(folder: Path, **changes) -> ReplayRequest:
    scratch = folder.with_name(f"{folder.name}-again")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    settings = SETTINGS.model_copy(update=changes)
    recipe = TinyRecipe(train=settings)
    return ReplayRequest(folder, read_artifact(folder), recipe, scratch, QuietReporter(), run_job)


def replay(folder: Path, *names: str, **changes):
    """Return the outcomes of a replay of the named segments, by default of all."""
    drawn = names or [segment.name for segment in read_segments(folder)]
    return list(REPLAYER.replay(open_request(folder, **changes), frozenset(drawn)))


def find(folder: Path, *names: str, **changes) -> dict[str, str]:
    return {one.name: str(one) for one in replay(folder, *names, **changes) if not one.is_same}


def test_an_honest_training_is_replayed_without_an_alarm(honest):
    names = [segment.name for segment in read_segments(honest)]
    assert names == ["train/start", "train/0-3", "train/3-6", "train/6-9", "train/9-12"]
    outcomes = replay(honest)
    assert all(outcome.is_same for outcome in outcomes)
    assert {*names, "output/model.safetensors", "output/loss.txt", "artifact.json details"} <= {
        outcome.name for outcome in outcomes
    }


@pytest.mark.parametrize(
    ("name", "steps"),
    [("train/start", []), ("train/0-3", [0, 1, 2]), ("train/6-9", [0, 6, 7, 8])],
)
def test_a_draw_takes_its_steps_from_kept_states_and_the_first(honest, monkeypatch, name, steps):
    taken = []
    plan = RecordSource.plan
    monkeypatch.setattr(
        RecordSource, "plan", lambda self, step: (taken.append(step), plan(self, step))[1]
    )
    outcomes = replay(honest, name)
    assert all(outcome.is_same for outcome in outcomes)
    assert taken == steps
    # The weights are compared, what follows them is not repeated.
    assert {outcome.name for outcome in outcomes} == {
        "train/start", name, "output/model.safetensors",
    }  # fmt: skip


FORGERIES = {
    "other learning rate": ({"train": {"learning_rate": 0.0201}}, "train/0-3"),
    "other teacher": ({"teacher": 5}, "train/0-3"),
    "swapped record": ({"records": 5}, "train/0-3"),
    "other seed": ({"seed": 1}, "train/0-3"),
    "other student": ({"student": 5}, "train/start"),
    "extra steps": ({"train": {"steps": 15}}, "train/start"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_another_training_than_the_recipe_says_is_found(honest, tmp_path, name):
    """The forger claims recipe and settings of an honest training."""
    changes, found = FORGERIES[name]
    folder = make(tmp_path / "forged", **changes)
    recipe = (honest / "recipe.yaml").read_text(encoding="utf-8")
    identity = read_journal(honest / "committed/train.jsonl")["start"]["identity"]
    reseal(folder, recipe=recipe, plan={"identity": identity})
    assert not verify_artifact(folder)
    assert found in find(folder)


def test_steps_taken_after_the_committed_ones_are_found(forged):
    path = forged / "output/model.safetensors"
    save_file({name: value * 1.001 for name, value in load_file(path).items()}, path)
    reseal(forged)
    assert not verify_artifact(forged)
    assert find(forged, "train/start") == {
        "output/model.safetensors": "are not the weights of the committed last state"
    }


def test_a_changed_state_is_found_whoever_computed_its_digests(forged):
    path = forged / "committed/train-000006.safetensors"
    tensors = load_file(path)
    tensors["weights/inner.bias"] += 1e-3
    save_file(tensors, path)
    reseal(forged)
    assert find(forged, "train/0-3").keys() == {"committed/train-000006.safetensors"}
    reseal(forged, state=6)  # rows follow the changed state, too
    assert not verify_artifact(forged)
    assert find(forged).keys() == {"train/3-6", "train/6-9"}


def test_a_missing_state_and_a_broken_chain_are_named(forged):
    reseal(forged, rows={"3-6": {"before": "0" * 64}})
    assert "follow from the row before" in find(forged)["train/3-6"]
    (forged / "committed/train-000006.safetensors").unlink()
    with pytest.raises(IntegrityError) as caught:
        replay(forged)
    assert caught.value.code == "replay.state"


def test_a_state_of_too_many_tensors_is_refused(forged):
    path = forged / "committed/train-000006.safetensors"
    save_file({**load_file(path), **{f"x{i}": torch.empty(0) for i in range(140_000)}}, path)
    reseal(forged)
    with pytest.raises(IntegrityError, match="more than 131072 tensors"):
        replay(forged)


@pytest.mark.parametrize(
    "plan",
    [
        {"every": 0},
        {"kept": [5]},
        {"numerics": {}},
        {"numerics": {"precision": "float32", "threads": 10**6}},
        {"numerics": {"precision": "float32", "threads": "1"}},
        {"steps": "many"},
        {"steps": "12"},
        {"weights": None},
    ],
)
def test_rows_that_nobody_writes_are_refused(forged, plan):
    reseal(forged, plan=plan)
    with pytest.raises(IntegrityError) as caught:
        replay(forged)
    assert caught.value.code == "replay.segments"


def test_steps_that_were_not_committed_are_named(forged):
    reseal(forged, plan={"steps": 15})
    assert find(forged)["train/12-15"] == "has no row: its steps were not committed"


def test_a_start_that_was_kept_instead_is_accepted_in_a_draw(forged):
    path = forged / "output/model.safetensors"
    save_file({name: value * 2 for name, value in load_file(path).items()}, path)
    reseal(forged)
    kept = {entry.path: entry.digest for entry in read_artifact(forged).files}
    choosing = TrainingReplayer(list_choices=lambda recipe: {kept["output/model.safetensors"]})
    for names, different in ((["train/0-3"], set()), ([], {"output/model.safetensors"})):
        drawn = names or [segment.name for segment in read_segments(forged)]
        outcomes = choosing.replay(open_request(forged), frozenset(drawn))
        assert {one.name for one in outcomes if not one.is_same} == different


@pytest.mark.parametrize("killed", [1, 7, 9, 11])
def test_a_resumed_training_commits_the_same_bytes(honest, tmp_path, monkeypatch, killed):
    class KilledError(Exception):
        pass

    metric = Job.metric

    def stop(job, name, value, **fields):
        metric(job, name, value, **fields)
        if name == "loss" and fields["step"] == killed:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Job, "metric", stop)
        with pytest.raises(KilledError):
            make(tmp_path / "honest", train={"save_every_s": 0})
    make(tmp_path / "honest", resume=True, train={"save_every_s": 0})
    names = ["committed/train.jsonl", "committed/train-000009.safetensors", "segments.jsonl"]
    whole = make(tmp_path / "whole", train={"save_every_s": 0})
    for name in names:
        assert (tmp_path / "honest" / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_artifact(tmp_path / "honest").claim == read_artifact(whole).claim
    assert not find(tmp_path / "honest", save_every_s=0)


def test_another_kind_of_machine_compares_within_bounds(forged, honest, tmp_path):
    numerics = {"device": "cpu", "instructions": "AVX2", "precision": "float32", "threads": 1}
    reseal(forged, plan={"numerics": numerics})
    assert not find(forged)
    # Another learning rate stays out of the bounds, though every digest was computed anew.
    other = make(tmp_path / "other", train={"learning_rate": 0.0201})
    recipe = (honest / "recipe.yaml").read_text(encoding="utf-8")
    identity = read_journal(honest / "committed/train.jsonl")["start"]["identity"]
    reseal(other, recipe=recipe, plan={"numerics": numerics, "identity": identity})
    found = find(other)
    assert {"train/0-3", "train/3-6", "train/6-9"} <= found.keys()
    # One that rounds otherwise is within.
    rows = read_journal(honest / "committed/train.jsonl")
    losses = [loss * (1 + 1e-6) for loss in rows["0-3"]["losses"]]
    near = Path(shutil.copytree(honest, tmp_path / "near"))
    reseal(near, plan={"numerics": numerics}, rows={"0-3": {"losses": losses}})
    within = {one.name: one.within for one in replay(near) if one.within}
    assert "weights by 0.0e+00 of their way (bound 0.001)" in within["train/0-3"]
    # What is no number, or is missing, is near nothing.
    for claimed in ([losses[0], math.nan, losses[2]], losses[:1]):
        reseal(near, plan={"numerics": numerics}, rows={"0-3": {"losses": claimed}})
        assert "train/0-3" in {one.name for one in replay(near) if not one.is_same}


def test_the_first_loss_is_taken_again_whatever_is_drawn(forged):
    losses = read_journal(forged / "committed/train.jsonl")["0-3"]["losses"]
    reseal(forged, rows={"0-3": {"losses": [1e7, *losses[1:]]}, "6-9": {"losses": [0.5] * 3}})
    assert "has the loss 10000000.0 in step 1" in find(forged, "train/9-12")["train/0-3"]
    numerics = {"device": "cpu", "instructions": "AVX2", "precision": "float32", "threads": 1}
    reseal(forged, plan={"numerics": numerics})
    assert "has the loss 10000000.0 in step 1" in find(forged, "train/6-9")["train/0-3"]


def test_without_room_for_states_the_steps_are_taken_from_the_first_one(tmp_path):
    folder = make(tmp_path / "job", train={"states_mb": 0})
    assert [path.name for path in (folder / "committed").iterdir()] == ["train.jsonl"]
    assert not find(folder, states_mb=0)
    assert "output/model.safetensors" in {one.name for one in replay(folder, states_mb=0)}
    outcomes = replay(folder, "train/3-6", states_mb=0)
    assert all(one.is_same for one in outcomes)
    assert "output/model.safetensors" not in {one.name for one in outcomes}


def test_a_training_without_commitments_stays_open(forged):
    shutil.rmtree(forged / "committed")
    assert "its steps were not committed" in REPLAYER.find_open(open_request(forged))


def test_a_run_that_an_earlier_version_began_is_not_committed(tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.train.commitment.StateCommitter.note", lambda *_: None)
    folder = tmp_path / "job"

    class KilledError(Exception):
        pass

    def stop(job, name, value, **fields):
        if name == "loss" and fields["step"] == 5:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Job, "metric", stop)
        with pytest.raises(KilledError):
            make(folder, train={"save_every_s": 0})
    monkeypatch.undo()
    make(folder, resume=True, train={"save_every_s": 0})
    assert not (folder / "segments.jsonl").exists()
    assert "cannot be verified by replay" in (folder / "events.jsonl").read_text()


def test_cost_besides_the_steps_has_the_phases_that_a_part_does_not_repeat(tmp_path):
    phases = [("retrieve", 4.0), ("train", 28.0), ("validate", 26.0), ("validate", 27.0)]
    rows = [{"event": "phase", "name": name, "cpu_seconds": cost} for name, cost in phases]
    rows.append({"event": "finished", "cpu_seconds": 95.0})
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, rows)))
    request = SimpleNamespace(folder=tmp_path)
    assert REPLAYER.estimate_rest(request, is_whole=False) == 14  # 10 between phases
    assert REPLAYER.estimate_rest(request, is_whole=True) == 67
