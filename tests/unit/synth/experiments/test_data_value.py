"""Records that help are told from records that harm, at equal size, and a stopped run goes on."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tests.unit.synth.conftest import run_in

from stillroom.cli import stillroom
from stillroom.errors import Cancelled, DataError
from stillroom.evaluate.metrics.bootstrap import bootstrap_two_way
from stillroom.records import Link, Message, Origin, Record, write_records
from stillroom.synth.experiments import data_value
from stillroom.synth.experiments.ablations import (
    RecordPools,
    make_ablation_groups,
    read_human_records,
    read_record_pools,
)
from stillroom.synth.experiments.data_value import make_leaderboard, run_data_value_study
from stillroom.synth.jobs.data_value import DataValueRecipe, estimate
from stillroom.synth.settings import FreshStudent

SMALL = FreshStudent(
    layers=1,
    hidden=32,
    vocabulary=300,
    max_tokens=48,
    train={
        "steps": 25,
        "batch_size": 8,
        "micro_tokens": 2048,
        "learning_rate": 1e-2,
        "threads": 1,
        "log_every": 100,
    },
)


def plan_of(records, human, **more):
    return DataValueRecipe(records=(str(records),), human=str(human), **({"student": SMALL} | more))


def make(rng, number, *, is_right, method):
    """Answers repeat the question's word; wrong ones are of other letters."""
    word = "".join(rng.choice(list("abcd"), 4))
    other = "".join(rng.choice(list("wxyz"), 4))
    answer = f"It is {word}, {word}." if is_right else f"{other} {other} {other}!"
    origin = Origin("synthetic", (Link(f"synth.generators.{method}"),))
    turns = (Message("user", f"What is {word}?"), Message("assistant", answer))
    return Record(turns, {"number": number, "kind": "right" if is_right else "wrong"}, origin)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    right = [make(rng, at, is_right=True, method="good") for at in range(60)]
    wrong = [make(rng, at, is_right=False, method="bad") for at in range(60)]
    human = [make(rng, at, is_right=True, method="-") for at in range(30)]
    write_records(folder / "mixed.jsonl", [*right, *wrong])
    write_records(folder / "human.jsonl", human)
    run = folder / "run"
    run.mkdir()
    write_records(run / "records.jsonl", right)
    rows = [
        {"filter": "refusal", "reason": "r", "record": record.to_json()} for record in wrong
    ] + [{"filter": "generator", "reason": "no question", "record": None}]
    (run / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_generator_that_helps_is_told_from_the_one_that_harms(world, tmp_path):
    plan = plan_of(world / "mixed.jsonl", world / "human.jsonl")
    assert "18 students" in estimate(plan).basis
    _, report, measured = run_in(tmp_path / "out", run_data_value_study, plan)
    rows = {(row.family, row.group.rsplit(".", 1)[-1]): row for row in make_leaderboard(measured)}
    assert rows["leave one out", "good"].verdict == "helps"
    assert rows["leave one out", "bad"].verdict == "harms"
    assert rows["only one", "good"].worth.value > 0 > rows["only one", "bad"].worth.value
    assert rows["only one", "good"].gain.value > rows["only one", "bad"].gain.value
    tokens = [rows["only one", name].tokens for name in ("good", "bad")]
    assert abs(tokens[0] / tokens[1] - 1) < 0.05
    assert "good help" in report.summary
    measured_on = "20 of 30 human records (2 are repetitions; 8 are trained on)"
    assert f"measured on {measured_on}" in report.summary
    start = measured.start.sum(axis=1) / measured.tokens.sum()
    assert all(row.gain.high <= start.max() for row in rows.values())  # nothing is extrapolated
    told = json.loads((tmp_path / "out/output/leaderboard.json").read_text())
    assert told[0]["verdict"] == "helps"


def test_a_filter_that_drops_bad_records_helps(world, tmp_path):
    words = [f"records=[{world / 'run'}]", f"human={world / 'human.jsonl'}", "by=filter"]
    words += ["equal=records", f"student={SMALL.model_dump_json()}"]
    words += ["--out", str(tmp_path / "out"), "--quiet"]
    done = CliRunner().invoke(
        stillroom, ["run", "synth.data_value", *words], catch_exceptions=False
    )
    assert "all filters" in done.output
    assert "refusal" in done.output
    rows = json.loads((tmp_path / "out/output/leaderboard.json").read_text())
    assert [row["verdict"] for row in rows] == ["helps"] * 3
    assert {row["records"] for row in rows} == {60}


def test_a_stopped_run_goes_on_to_the_same_bytes(world, tmp_path, monkeypatch):
    brief = SMALL.model_copy(update={"train": SMALL.train.model_copy(update={"steps": 4})})
    plan = plan_of(
        world / "mixed.jsonl", world / "human.jsonl", by="kind", num_seeds=1, student=brief
    )
    wanted, _, _ = run_in(tmp_path / "whole", run_data_value_study, plan)
    seen = []
    whole = data_value._Experiment._run_unit

    def stop(self, *given):
        if len(seen) == 3:
            raise Cancelled("stopped", code="job.cancelled")
        seen.append(given)
        return whole(self, *given)

    monkeypatch.setattr(data_value._Experiment, "_run_unit", stop)
    with pytest.raises(Cancelled):
        run_in(tmp_path / "out", run_data_value_study, plan)
    monkeypatch.setattr(data_value._Experiment, "_run_unit", whole)
    artifact, report, measured = run_in(tmp_path / "out", run_data_value_study, plan, resume=True)
    assert artifact.digest == wanted.digest
    assert {row.verdict for row in make_leaderboard(measured)} == {"too few seeds"}
    assert "nothing is concluded from 1 seed" in report.summary


def test_few_human_records_conclude_nothing_and_what_helps_is_said(world, tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    short = [make(rng, at, is_right=True, method="-") for at in range(3)]
    long = [
        Record((Message("user", "Tell all."), Message("assistant", f"It is {at}, so. " * 40)))
        for at in range(40)
    ]
    write_records(tmp_path / "human.jsonl", [*short, *long])
    plan = plan_of(world / "mixed.jsonl", tmp_path / "human.jsonl")
    with pytest.raises(DataError) as caught:
        run_in(tmp_path / "out", run_data_value_study, plan)
    problem = caught.value.problems[0]
    assert problem.code == "synth.too-few"
    assert "3 of 43 human records (40 are longer than 48 tokens)" in problem.what
    tokens = int(problem.next.split()[0].partition("=")[2])
    enough = plan_of(
        world / "mixed.jsonl",
        tmp_path / "human.jsonl",
        student=SMALL.model_copy(update={"max_tokens": tokens}),
    )
    monkeypatch.setattr(data_value._Experiment, "_run_unit", stop)
    with pytest.raises(Cancelled):  # and not DataError: students begin
        run_in(tmp_path / "out", run_data_value_study, enough, overwrite=True)


def test_one_human_record_many_times_is_one(world, tmp_path):
    one = make(np.random.default_rng(5), 1, is_right=True, method="-")
    write_records(tmp_path / "human.jsonl", [one] * 40)
    plan = plan_of(world / "mixed.jsonl", tmp_path / "human.jsonl")
    with pytest.raises(DataError, match=r"1 of 40 human records.*39 are repetitions"):
        run_in(tmp_path / "out", run_data_value_study, plan)
    question, answer = one.messages
    texts = [answer.content + " " * n + "\n" * (n % 3) for n in range(40)]
    spaced = [Record((question, Message("assistant", text))) for text in texts]
    write_records(tmp_path / "human.jsonl", spaced)
    with pytest.raises(DataError, match=r"1 of 40 human records.*39 are repetitions"):
        run_in(tmp_path / "again", run_data_value_study, plan)


def stop(*given):
    raise Cancelled("stopped", code="job.cancelled")


def test_what_cannot_be_compared_is_refused(world, tmp_path):
    for paths, by, code in (
        ("mixed", "filter", "synth.one-group"),
        ("mixed", "nothing-of-the-kind", "synth.one-group"),
    ):
        with pytest.raises(DataError) as caught:
            read_record_pools((world / f"{paths}.jsonl",), by)
        assert caught.value.problems[0].code == code
    plan = plan_of(world / "mixed.jsonl", world / "mixed.jsonl")
    with pytest.raises(DataError) as caught:  # all of it is learned from
        run_in(tmp_path / "out", run_data_value_study, plan)
    assert caught.value.problems[0].code == "synth.too-few"


def test_one_group_may_be_chosen(world):
    pools = read_record_pools((world / "run",), "filter")
    families, _ = make_ablation_groups(pools, least=20, most=100, names=("all filters",))
    assert [[arm.name for arm in family.arms] for family in families] == [["unfiltered"]]
    with pytest.raises(DataError) as caught:
        make_ablation_groups(pools, least=20, most=100, names=("none such",))
    assert caught.value.problems[0].code == "synth.no-group"


def test_small_groups_are_named_and_not_compared(world):
    pools = read_record_pools((world / "mixed.jsonl",), "number")
    families, small = make_ablation_groups(pools, least=20, most=100)
    assert families == []
    assert len(small) == 60
    assert all(line.endswith(" of 20 records)") for line in small)
    with pytest.raises(DataError, match=r"has \d+ of the 20 records") as caught:
        make_ablation_groups(pools, least=20, most=100, names=(next(iter(pools.groups)),))
    assert caught.value.code == "synth.no-group"


def test_an_arm_that_leaves_out_too_much_and_records_without_the_field_are_named(world, tmp_path):
    kept = read_record_pools((world / "mixed.jsonl",), "number").kept[:60]
    pools = RecordPools(kept, {}, {"most": kept[:50], "rest": kept[50:]}, "number")
    families, small = make_ablation_groups(pools, least=20, most=100)
    assert [arm.name for family in families for arm in family.arms] == ["only most"]
    assert small == ["rest (10 of 20 records)", "all but most (10 of 20 records)"]
    written = [Record(kept[0].messages, {}, kept[0].origin), kept[1]]
    write_records(tmp_path / "one.jsonl", written)
    assert "(no number)" in read_record_pools((tmp_path / "one.jsonl",), "number").groups


def test_an_interval_over_seeds_and_records_is_wider_than_over_records_alone():
    rng = np.random.default_rng(0)
    luck = rng.normal(size=(6, 1))
    values = luck + rng.normal(scale=0.1, size=(6, 200))
    crossed = bootstrap_two_way(values, np.ones(200))
    still = bootstrap_two_way(values - luck, np.ones(200))
    assert crossed.value == pytest.approx(values.mean())
    assert crossed.high - crossed.low > 5 * (still.high - still.low)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for draw in range(60):
        values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 50)) + rng.normal(size=(8, 50))
        found = bootstrap_two_way(values, np.ones(50), resamples=500, seed=draw)
        hits += found.low <= 0 <= found.high
    assert hits >= 51  # 85 %: eight runs are few, and the method is not exact


def test_nothing_measured_is_said():
    assert bootstrap_two_way(np.zeros((0, 3)), np.ones(3)).note == "nothing was measured"


def test_damaged_dropped_rows_are_refused_and_records_without_turns_left_out(world, tmp_path):
    (tmp_path / "records.jsonl").write_bytes((world / "run" / "records.jsonl").read_bytes())
    dropped = tmp_path / "dropped.jsonl"
    dropped.write_text('\n{"reason": "of another tool"}\n{"filter": "x", "record": {}}\n')
    with pytest.raises(DataError) as caught:
        read_record_pools((tmp_path,), "filter")
    assert caught.value.code == "synth.one-group"
    dropped.write_text('{"filter": "refu')
    with pytest.raises(DataError) as caught:
        read_record_pools((tmp_path,), "filter")
    assert caught.value.code == "data.damaged"
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"messages": [], "fields": {}, "origin": null}\n')
    assert read_human_records(empty) == []
