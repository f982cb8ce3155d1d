"""Two processes distill the student of one: the same curve, the same weights, no deadlock."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.processes import Process
from tests.ranks import curve, finish, start_ranks

from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact
from stillroom.recipes import load_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

TRAIN = {
    "steps": 6,
    "batch_size": 5,
    "micro_tokens": 40,
    "threads": 1,
    "precision": "float32",
    "learning_rate": 3e-3,
}
WAYS: dict[str, dict[str, Any]] = {
    "live": {"targets": {"mode": "live"}},
    "cached": {"targets": {"mode": "top_k", "k": 16}},
    "features": {
        "kind": "distill.features",
        "method": {"name": "forward_kl", "kd_weight": 0.0},
        "feature_losses": ["hidden_state", "attention", "relation"],
    },
    "rollouts": {
        "kind": "distill.on_policy",
        "include_prompt": False,
        "rollout_policy": {"name": "on_policy", "max_new_tokens": 8},
    },
    "lora": {"targets": {"mode": "live"}, "train": {**TRAIN, "lora": {"rank": 4}}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    tiny_checkpoint(root / "teacher", layers=3)
    tiny_checkpoint(root / "untied", layers=3, tie=False)
    records = [
        Record(
            (Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}, a still." * 2)),
            {"split": "held_out" if n % 5 == 0 else "train"},
        )
        for n in range(15)
    ]
    write_records(root / "records.jsonl", records)
    return root


def write_recipe(folder: Path, out: Path, fields: dict[str, Any]) -> Path:
    recipe = folder / f"{out.name}.yaml"
    recipe.write_text(
        json.dumps(
            {
                "version": 1,
                "kind": "distill.logits",
                "teacher": str(folder / "teacher"),
                "records": str(folder / "records.jsonl"),
                "student": {"max_parameters": 0.9},
                "keep_checkpoints": 1,
                "fidelity": {"baseline": False, "speed": False},
                "train": TRAIN,
                **fields,
            }
        )
    )
    return recipe


def start(folder: Path, out: Path, fields: dict[str, Any], ranks: int, *more: str) -> list[Process]:
    recipe = write_recipe(folder, out, fields)
    return start_ranks(["run", recipe, "--out", out, *more], ranks)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "output" / "model.safetensors")


def check_same(one: Path, two: Path) -> None:
    for name in ("loss", "grad_norm"):
        wanted = curve(one, name)
        assert len(wanted) == 6
        assert curve(two, name) == pytest.approx(wanted, rel=2e-4)
    left, right = weights(one), weights(two)
    assert set(left) == set(right)
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=0, atol=2e-4)
    assert read_artifact(two).details["train"]["ranks"] == 2
    assert read_artifact(two).details["fidelity"]["measured"] == 3
    assert (two / "output" / "candidates" / "000006" / "model.safetensors").is_file()


def alone(folder: Path, out: Path, fields: dict[str, Any]) -> None:
    """Do the same job in this process, whole in one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run_recipe(load_recipe(write_recipe(folder, out, fields)), out)
    torch.set_num_threads(before)


def sharded(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "train": {**fields.get("train", TRAIN), "sharding": "fsdp"}}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "way",
    ["features", pytest.param("lora", marks=SLOW), pytest.param("checkpointed", marks=SLOW)],
)
def test_two_processes_with_a_share_of_the_weights_each_make_it_too(
    folder: Path, tmp_path: Path, way: str
) -> None:
    fields = {**WAYS.get(way, WAYS["live"]), "output": {"dtype": "float32"}}
    if way == "checkpointed":
        fields["train"] = {**TRAIN, "gradient_checkpointing": True}
        fields["teacher"] = str(folder / "untied")
    alone(folder, tmp_path / "one", fields)
    two = finish(start(folder, tmp_path / "two", sharded(fields), 2))
    assert [code for code, _ in two] == [0, 0], two[0][1] + two[1][1]
    check_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "cached" else SLOW) for way in WAYS]
)
def test_two_processes_make_the_student_of_one(folder: Path, tmp_path: Path, way: str) -> None:
    fields = {**WAYS[way], "output": {"dtype": "float32"}}
    alone(folder, tmp_path / "one", fields)
    two = finish(start(folder, tmp_path / "two", fields, 2))
    assert [code for code, _ in two] == [0, 0], two[0][1] + two[1][1]
    assert two[1][1] == ""  # the first process tells
    check_same(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cached", "sharded", "rollouts"])
def test_two_processes_have_the_baseline_of_one(folder: Path, tmp_path: Path, way: str) -> None:
    """The main process trains it alone while the other waits; both know the whole budget."""
    fields = {
        **WAYS.get(way, WAYS["cached"]),
        "output": {"dtype": "float32"},
        "fidelity": {"baseline": True, "keep_baseline": True, "speed": False, "answers": 1},
    }
    alone(folder, tmp_path / "one", fields)
    two = finish(
        start(folder, tmp_path / "two", sharded(fields) if way == "sharded" else fields, 2)
    )
    assert [code for code, _ in two] == [0, 0], two[0][1] + two[1][1]
    check_same(tmp_path / "one", tmp_path / "two")
    wanted = curve(tmp_path / "one", "baseline/loss")
    assert len(wanted) == 6
    # Its own budget follows from the student's counts; nothing of it depends on the ranks.
    assert curve(tmp_path / "two", "baseline/loss") == wanted
    left, right = (
        load_file(tmp_path / name / "output" / "baseline" / "model.safetensors")
        for name in ("one", "two")
    )
    assert all(torch.equal(left[name], right[name]) for name in left)
    reports = [
        json.loads((tmp_path / name / "output" / "fidelity.json").read_text())
        for name in ("one", "two")
    ]
    budgets = [report["budget"]["baseline"] for report in reports]
    assert budgets[0] == budgets[1]
    for report in reports:
        budget = report["budget"]
        assert budget["baseline"]["steps"] == budget["final"]["steps"] == 6
        if way != "rollouts":  # the counts of the student's own text come out equal on the whole
            assert budget["baseline"]["positions"] == budget["final"]["positions"]
    summaries = [report["summary"]["baseline"]["loss"]["value"] for report in reports]
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_both_resume_to_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    train = {**TRAIN, "steps": 15, "save_every_s": 0.05, "sharding": "fsdp"}
    fields = {**WAYS["features"], "train": train}
    whole = finish(start(folder, tmp_path / "whole", fields, 2))
    assert [code for code, _ in whole] == [0, 0], whole[0][1]
    main, other = start(folder, tmp_path / "killed", fields, 2)
    told = tmp_path / ".killed.partial" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and main.poll() is None:
        if told.is_file() and told.stat().st_size > 400:
            break
        time.sleep(0.005)
    main.send_signal(signal.SIGKILL)
    (code, _), _ = finish([other, main])
    assert code != 0  # it does not wait for one that is gone
    assert not (tmp_path / "killed").exists()
    again = finish(start(folder, tmp_path / "killed", fields, 2, "--resume"))
    assert [code for code, _ in again] == [0, 0], again[0][1] + again[1][1]
    digests = {read_artifact(tmp_path / name).digest for name in ("whole", "killed")}
    assert len(digests) == 1
