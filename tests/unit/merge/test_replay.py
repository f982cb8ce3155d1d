"""Replay of merges of every kind."""

import pytest
from tests.unit.merge.conftest import fine_tune

from stillroom.flow.job import run_job
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.jobs import Job
from stillroom.recipes import build_recipe, dump_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

SCORED = {"records": "RECORDS", "split": "", "max_records": 12}
KINDS = {
    "weights": {"method": "ties"},
    "random": {"method": "dare_linear", "arithmetic": "mergekit"},
    "select": {"method": "linear", "select": {**SCORED}},
    "search": {
        "method": "task_arithmetic",
        "search": {
            **SCORED,
            "space": [{"setting": "scale", "low": 0, "high": 1}],
            "evaluations": 4,
            "optimizer": {"name": "cma", "population": 4},
        },
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    base = tiny_checkpoint(folder / "base")
    for seed in (1, 2):
        fine_tune(base, folder / f"tune{seed}", seed)
    turns = [(Message("user", f"Why {n}?"), Message("assistant", f"as {n}")) for n in range(16)]
    write_records(folder / "records.jsonl", [Record(messages) for messages in turns])
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_merge_is_replayed_in_part_and_as_a_whole(name, inputs, tmp_path):
    kind = next((kind for kind in ("select", "search") if kind in KINDS[name]), "weights")
    recipe = build_recipe(
        {
            "kind": f"merge.{kind}",
            "base_model": str(inputs / "base"),
            "models": [{"model": str(inputs / f"tune{seed}")} for seed in (1, 2)],
            **replace_records(KINDS[name], str(inputs / "records.jsonl")),
        }
    )
    out = tmp_path / "out"
    run_job(recipe, Job.start(out, dump_recipe(recipe), seed=recipe.seed))
    for amount in ("3", "all"):
        result = plan_replay(out, ReplayAmount.parse(amount), seed=1).run()
        assert [(one.name, str(one)) for _, one in result.differences] == []
        assert [job.open for job in result.open_jobs] == []
    assert result.total >= 20 + (kind != "weights")


def replace_records(settings, path):
    return {
        key: replace_records(value, path) if isinstance(value, dict) else value
        for key, value in settings.items()
    } | ({"records": path} if "records" in settings else {})
