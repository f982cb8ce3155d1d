"""Two processes train the diffusion model of one: the same curve and weights, and a resumed run."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.ranks import curve, finish, start_ranks
from tests.unit.diffusion.conftest import say_diffusion

from stillroom.flow import run_recipe
from stillroom.provenance import read_artifact
from stillroom.recipes import load_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

TRAIN = {
    "steps": 4,
    "batch_size": 5,
    "micro_tokens": 60,
    "threads": 1,
    "precision": "float32",
    "learning_rate": 3e-3,
}
GRPO = {
    "kind": "diffusion.reward",
    "verifier": {"name": "regex", "pattern": "[a-m]"},
    "num_generations": 3,
    "num_iterations": 2,
    "decode": {"max_new_tokens": 4, "temperature": 1.0, "commit": {"name": "top_k", "k": 2}},
}
WAYS: dict[str, dict[str, Any]] = {
    "bound": {"validation": {"every": 2, "records": 2, "samples": 2}},
    "sharded": {
        "train": {**TRAIN, "sharding": "fsdp"},
        "validation": {"every": 2, "records": 2, "samples": 2},
    },
    "sharded_lora": {"model": "model", "train": {**TRAIN, "sharding": "fsdp", "lora": {"rank": 2}}},
    "blocks": {
        "attention": {"name": "block_causal", "block_size": 4},
        "corruption": "complementary",
    },
    "lora": {"model": "model", "train": {**TRAIN, "lora": {"rank": 2}}},
    "vrpo": {"model": "model", "kind": "diffusion.preference", "num_times": 2},
    "diffu_grpo": {"model": "model", **GRPO, "train": {**TRAIN, "batch_size": 2}},
}
SLOW = {"blocks", "bound", "lora", "sharded_lora", "vrpo"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    say_diffusion(tiny_checkpoint(root / "model", layers=2, hidden=32))
    records = [
        Record(
            (Message("user", f"Question {n}?"), Message("assistant", f"Answer {n}, a still." * 2)),
            {
                "split": "held_out" if n % 5 == 0 else "train",
                "chosen": f"Answer {n}, a still.",
                "rejected": f"No answer to {n}.",
            },
        )
        for n in range(15)
    ]
    write_records(root / "records.jsonl", records)
    return root


def write_recipe(folder: Path, out: Path, fields: dict[str, Any]) -> Path:
    network = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    model = fields.get("model", network)
    said = {
        "version": 1,
        "kind": "diffusion.train",
        "records": str(folder / "records.jsonl"),
        "validation": {"records": 2, "samples": 2},
        "train": TRAIN,
        "out": {"dtype": "float32"},
        **fields,
        "model": str(folder / model) if isinstance(model, str) else model,
    }
    recipe = folder / f"{out.name}.yaml"
    recipe.write_text(json.dumps(said))
    return recipe


def alone(folder: Path, out: Path, fields: dict[str, Any]) -> None:
    """Do the same job in this process, whole in one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run_recipe(load_recipe(write_recipe(folder, out, fields)), out)
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way in SLOW else ()) for way in WAYS]
)
def test_two_processes_train_the_model_of_one(folder: Path, tmp_path: Path, way: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone(folder, one, WAYS[way])
    recipe = write_recipe(folder, two, WAYS[way])
    ended = finish(start_ranks(["run", recipe, "--out", two], 2))
    assert [code for code, _ in ended] == [0, 0], ended[0][1] + ended[1][1]
    assert ended[1][1] == ""  # the first process tells
    names = ["loss", "grad_norm"]
    names += ["validation/masked_ce/t=0.5"] if way in {"bound", "sharded"} else []
    names += ["reward/mean"] if way == "diffu_grpo" else []
    for name in names:
        wanted = curve(one, name)
        assert len(wanted) == (2 if name.startswith("validation") else 4)
        assert curve(two, name) == pytest.approx(wanted, rel=5e-4, abs=1e-6)
    left, right = (load_file(out / "output" / "model.safetensors") for out in (one, two))
    assert set(left) == set(right)
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=0, atol=5e-4)
    details = [read_artifact(out).details for out in (one, two)]
    assert details[1]["train"]["ranks"] == 2
    for name in ("records", "start", "parameters"):
        assert details[0][name] == details[1][name]
    assert details[1]["after"]["nats_per_token"] == pytest.approx(
        details[0]["after"]["nats_per_token"], rel=1e-3
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bound", "sharded", "diffu_grpo"])
def test_a_killed_process_ends_the_other_and_both_resume_to_the_same_bytes(
    folder: Path, tmp_path: Path, way: str
) -> None:
    train = {**TRAIN, **WAYS[way].get("train", {}), "steps": 30, "save_every_s": 0.05}
    fields = {**WAYS[way], "train": train}
    fields["validation"] = {"every": 1, "records": 2, "samples": 2}
    recipe = write_recipe(folder, tmp_path / "any", fields)
    whole, killed = tmp_path / "whole" / "model", tmp_path / "killed" / "model"
    ended = finish(start_ranks(["run", recipe, "--out", whole], 2))
    assert [code for code, _ in ended] == [0, 0], ended[0][1]
    main, other = start_ranks(["run", recipe, "--out", killed], 2)
    told = killed.with_name(".model.partial") / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and main.poll() is None:
        if told.is_file() and told.stat().st_size > 2000:
            break
        time.sleep(0.005)
    other.send_signal(signal.SIGKILL)
    (code, _), _ = finish([main, other])
    assert code != 0  # it does not wait for one that is gone
    assert not killed.exists()
    again = finish(start_ranks(["run", recipe, "--out", killed, "--resume"], 2))
    assert [code for code, _ in again] == [0, 0], again[0][1] + again[1][1]
    assert read_artifact(whole).digest == read_artifact(killed).digest
