"""Distillations are replayed in part and whole; another teacher is found."""

import json
from pathlib import Path

import pytest
from tests.unit.train.forgery import reseal

from stillroom.flow import run_recipe
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.provenance import read_artifact
from stillroom.recipes import parse_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder / "teacher", layers=2)
    tiny_checkpoint(folder / "other", layers=2, seed=5)
    records = [
        Record((Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}, a still.")))
        for n in range(60)
    ]
    write_records(folder / "records.jsonl", records)
    return folder


def run(folder: Path, out: Path, kind: str, **changes) -> Path:
    train = {"steps": 8, "batch_size": 4, "threads": 1, "precision": "float32"}
    data = {
        "kind": kind, "teacher": "teacher", "records": "records.jsonl", "student": "other",
        "fidelity": {"records": 2, "baseline": False, "answers": 0, "speed": False},
        "keep_checkpoints": 0, **changes,
        "train": {**train, **changes.get("train", {})},
    }  # fmt: skip
    run_recipe(parse_recipe(json.dumps(data), folder=folder), out)
    return out


def find(folder: Path, amount: str) -> dict[str, str]:
    job = plan_replay(folder, ReplayAmount.parse(amount), seed=3).run().jobs[0]
    assert job.segments
    assert not job.open
    return {one.name: str(one) for one in job.differences}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("distill.logits", {"targets": {"mode": "sampled"}, "train": {"lora": {"rank": 2}}}),
        (
            "distill.on_policy",
            {"rollout_policy": {"name": "replay", "level": 0.9, "buffer": 8, "max_new_tokens": 4}},
        ),
    ],
)
def test_a_distillation_replays_in_part_and_whole(place, tmp_path, kind, changes):
    run(place, tmp_path / "job", kind, **changes)
    assert find(tmp_path / "job", "2") == {}
    assert find(tmp_path / "job", "all") == {}


def test_another_teacher_is_found(place, tmp_path):
    honest = run(place, tmp_path / "honest", "distill.logits")
    forged = run(place, tmp_path / "forged", "distill.logits", teacher="other")
    recipe = (honest / "recipe.yaml").read_text(encoding="utf-8")
    reseal(forged, recipe=recipe, parents=read_artifact(honest).parents)
    assert {"train/0-2", "train/2-4"} <= find(forged, "all").keys()


def test_an_endpoint_that_wrote_training_text_stays_open(place, tmp_path):
    from stillroom.distill.jobs.declaration import _find_reason
    from stillroom.distill.jobs.supervised import SupervisedRecipe

    recipe = SupervisedRecipe.model_validate(
        {
            "teacher": {"endpoint": "http://127.0.0.1:9/v1", "model": "m"},
            "records": str(place / "records.jsonl"),
            "student": str(place / "other"),
            "sequence": {"attempts": 1, "scorers": []},
        }
    )
    assert _find_reason(recipe).startswith("http://127.0.0.1:9/v1 answered")
