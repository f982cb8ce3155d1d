"""Trainings are replayed: honest ones without an alarm, forged ones by name."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.unit.train.forgery import reseal

from stillroom.flow import run_recipe
from stillroom.flow.job import find_job_kind
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.jobs import Job
from stillroom.jobs.journal import read_journal
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.recipes import dump_recipe, parse_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint
from stillroom.train import replay


def write_data(path: Path, word: str = "still", count: int = 30) -> None:
    records = [
        Record((Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}, a {word}.")))
        for n in range(count)
    ]
    write_records(path, records)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "teacher", layers=2)
    tiny_checkpoint(folder / "other", layers=2, seed=5)
    write_data(folder / "records.jsonl")
    write_data(folder / "swapped.jsonl", "kiln")
    run_recipe(make_recipe(folder), folder / "honest")
    return folder


def make_recipe(folder: Path, kind: str = "distill.logits", **changes):
    train = {"steps": 12, "batch_size": 4, "threads": 1, "precision": "float32"}
    data = {
        "kind": kind, "teacher": "teacher", "records": "records.jsonl", "student": "other",
        "fidelity": {"records": 0}, "keep_checkpoints": 0, **changes,
        "train": {**train, **changes.get("train", {})},
    }  # fmt: skip
    return parse_recipe(json.dumps(data), folder=folder)


def replay_job(folder: Path, amount: str = "all", seed: int = 0):
    return plan_replay(folder, ReplayAmount.parse(amount), seed=seed).run().jobs[0]


def list_differences(folder: Path, amount: str = "all") -> dict[str, str]:
    return {one.name: str(one) for one in replay_job(folder, amount).differences}


def test_an_honest_training_is_replayed_without_an_alarm(place):
    job = replay_job(place / "honest")
    assert [segment.name for segment in job.segments] == [
        "train/start", "train/0-3", "train/3-6", "train/6-9", "train/9-12",
    ]  # fmt: skip
    assert not job.differences
    assert {"output/model.safetensors", "artifact.json details"} <= {o.name for o in job.outcomes}


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_takes_its_steps_alone_from_kept_states(place, seed, monkeypatch):
    taken = []
    take = replay.TrainingReplayJob.take_steps

    def count(job, committer, take_step):
        return take(job, committer, lambda step: (taken.append(step), take_step(step)))

    monkeypatch.setattr(replay.TrainingReplayJob, "take_steps", count)
    job = replay_job(place / "honest", "1", seed)
    assert not job.differences
    (drawn,) = job.drawn
    first, _, last = drawn.removeprefix("train/").partition("-")
    assert taken == ([] if drawn == "train/start" else list(range(int(first), int(last))))
    assert "output/model.safetensors" in {outcome.name for outcome in job.outcomes}


FORGERIES = {
    "other learning rate": ({"train": {"learning_rate": 4e-3}}, "train/0-3"),
    "other teacher": ({"teacher": "other"}, "train/0-3"),
    "swapped record": ({"records": "swapped.jsonl"}, "train/0-3"),
    "other seed": ({"seed": 1}, "train/0-3"),
    "other student": ({"student": "teacher"}, "train/start"),
    "extra steps": ({"train": {"steps": 15}}, "train/start"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_another_training_than_the_recipe_says_is_found(place, tmp_path, name):
    """The forger claims recipe, parents and settings of an honest training."""
    changes, found = FORGERIES[name]
    run_recipe(make_recipe(place, **changes), tmp_path / "forged")
    claim = read_artifact(place / "honest")
    recipe = (place / "honest" / "recipe.yaml").read_text(encoding="utf-8")
    identity = read_journal(place / "honest/committed/train.jsonl")["start"]["identity"]
    reseal(tmp_path / "forged", recipe=recipe, parents=claim.parents, plan={"identity": identity})
    assert not verify_artifact(tmp_path / "forged", parents=False)
    assert found in list_differences(tmp_path / "forged")


def test_steps_taken_after_the_committed_ones_are_found(place, tmp_path):
    shutil.copytree(place / "honest", tmp_path / "forged")
    path = tmp_path / "forged/output/model.safetensors"
    tensors = load_file(path)
    save_file({name: value * 1.1 for name, value in tensors.items()}, path, {"format": "pt"})
    reseal(tmp_path / "forged")
    assert not verify_artifact(tmp_path / "forged", parents=False)
    assert list_differences(tmp_path / "forged", "1") == {
        "output/model.safetensors": "are not the weights of the committed last state"
    }


def test_a_changed_state_is_found_whoever_computed_its_digests(place, tmp_path):
    shutil.copytree(place / "honest", tmp_path / "forged")
    path = tmp_path / "forged/committed/train-000006.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("weights/"))
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, path)
    reseal(tmp_path / "forged")
    assert "committed/train-000006.safetensors" in list_differences(tmp_path / "forged")
    reseal(tmp_path / "forged", state=6)  # rows follow the changed state, too
    assert not verify_artifact(tmp_path / "forged", parents=False)
    assert list_differences(tmp_path / "forged").keys() == {"train/3-6", "train/6-9"}


def test_a_missing_state_and_a_broken_chain_are_named(place, tmp_path):
    shutil.copytree(place / "honest", tmp_path / "forged")
    (tmp_path / "forged/committed/train-000006.safetensors").unlink()
    reseal(tmp_path / "forged", rows={"3-6": {"before": "0" * 64}})
    found = list_differences(tmp_path / "forged")
    assert "follow from the row before" in found["train/3-6"]
    assert "[replay.state]" in found["the job"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("distill.supervised", {"train": {"lora": {"rank": 2, "dropout": 0.2}}}),
        ("distill.features", {"feature_losses": ["hidden_state"]}),
        ("distill.on_policy", {"rollout_policy": {"name": "replay", "level": 0.9, "buffer": 8,
                               "max_new_tokens": 4}}),
        ("distill.logits", {"targets": {"mode": "sampled"}, "train": {"states_mb": 0}}),
    ],
)  # fmt: skip
def test_every_kind_replays_in_part_and_whole(place, tmp_path, kind, changes):
    run_recipe(make_recipe(place, kind, **changes), tmp_path / "job")
    assert list_differences(tmp_path / "job") == {}
    assert list_differences(tmp_path / "job", "2") == {}


def test_a_resumed_training_commits_the_same_bytes(place, tmp_path):
    class KilledError(Exception):
        pass

    recipe = make_recipe(place, train={"save_every_s": 0})
    run_recipe(recipe, tmp_path / "whole")
    job = Job.start(tmp_path / "part", dump_recipe(recipe), seed=recipe.seed)
    with pytest.raises(KilledError):
        run_until(recipe, job, 7, KilledError)
    run_recipe(recipe, tmp_path / "part", resume=True)
    for name in ("segments.jsonl", "committed/train.jsonl", "committed/train-000009.safetensors"):
        part, whole = (tmp_path / run / name for run in ("part", "whole"))
        assert part.read_bytes() == whole.read_bytes(), name
    assert read_artifact(tmp_path / "part").digest == read_artifact(tmp_path / "whole").digest


def run_until(recipe, job, step, error):
    """Run a job as ``run_job`` does, and raise in the step after the given one."""
    kind = find_job_kind(recipe.kind)
    job.segment_journals = kind.replayer.journals
    metric = job.metric

    def stop(name, value, **fields):
        metric(name, value, **fields)
        if name == "loss" and fields["step"] == step:
            raise error

    job.metric = stop
    try:
        kind.run(recipe, job)
    finally:
        job.close()


def test_another_kind_of_machine_compares_within_bounds(place, tmp_path):
    shutil.copytree(place / "honest", tmp_path / "other")
    numerics = {"device": "cpu", "instructions": "AVX2", "precision": "float32", "threads": 1}
    reseal(tmp_path / "other", plan={"numerics": numerics})
    job = replay_job(tmp_path / "other")
    assert not job.differences
    forged = tmp_path / "forged"
    run_recipe(make_recipe(place, train={"learning_rate": 2.01e-3}), forged)
    claim = read_artifact(place / "honest")
    recipe = (place / "honest" / "recipe.yaml").read_text(encoding="utf-8")
    reseal(forged, recipe=recipe, parents=claim.parents, plan={"numerics": numerics})
    assert "has the loss" in list_differences(forged)["train/0-3"]


def test_a_training_without_commitments_stays_open(place, tmp_path):
    shutil.copytree(place / "honest", tmp_path / "old")
    shutil.rmtree(tmp_path / "old/committed")
    job = replay_job(tmp_path / "old")
    assert job.open.startswith("its steps were not committed")


def test_states_fit_the_room_given_for_them(place, tmp_path):
    run_recipe(make_recipe(place, train={"states_mb": 1}), tmp_path / "job")
    kept = list((tmp_path / "job/committed").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in kept) < 1.1e6
