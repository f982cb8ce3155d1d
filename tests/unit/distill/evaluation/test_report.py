import json
from dataclasses import replace

import numpy as np
import pytest

from stillroom.distill.evaluation.metrics import (
    Fidelity,
    GeneratedAnswer,
    ModelFidelity,
    RecordFidelity,
    TemperatureScaled,
    bin_by_position,
)
from stillroom.distill.evaluation.report import TrainingBudget, build_report
from stillroom.distill.evaluation.tables import read_loss_curves
from stillroom.evaluate.metrics.calibration import NUM_BINS


def make_side(rng, kl, *, answers=(), free=(), forced=()):
    rows = tuple(
        RecordFidelity(f"r{at}", kl + rng.normal(0, 0.05), kl, 0.5, 2.0, 5 + at, 0.4, 1.0, 1.5, 0.6)
        for at in range(24)
    )
    bins = rng.uniform(1, 2, (24, 3, NUM_BINS))
    half = tuple(tuple(row) for row in bins[0].tolist())
    scaled = tuple(TemperatureScaled(5, 1.9, 0.5, half, half) for _ in range(4))
    return ModelFidelity(Fidelity(rows), bins, 1.1, scaled, answers, (), free, forced)


def answer(text, at=0, reference="the cat sat"):
    return GeneratedAnswer(
        f"r{at}", text, reference, tuple(range(len(text.split()))), has_ended=True
    )


@pytest.fixture
def sides():
    rng = np.random.default_rng(0)
    depth = tuple(np.ones(4) for _ in range(4))
    said = {
        "teacher": ("the cat sat", "the cat sat", "a dog", "a dog"),
        "final": ("The cat sat.", "a dog", "the cat sat", "a bird"),
        "baseline": ("a dog", "a dog", "a dog", "a dog"),
    }
    written = {name: tuple(map(answer, texts, range(4))) for name, texts in said.items()}
    return {
        "teacher": make_side(rng, 0.0, answers=written["teacher"]),
        "initial": make_side(rng, 4.0),
        "final": make_side(rng, 1.0, answers=written["final"], free=depth, forced=depth),
        "baseline": make_side(rng, 2.0, answers=written["baseline"], free=depth, forced=depth),
    }


def build(sides):
    budget = TrainingBudget(10, 100, 50, 1000, 2000)
    budgets = {name: budget for name in sides if name != "initial"}
    return build_report(sides, budgets, title="T", seed=0, passed_over={})


def test_flips_are_counted_after_normalization_and_by_what_became_of_them(sides):
    metrics = build(sides).metrics
    assert metrics["student/flips"].value == 0.75
    assert metrics["student/lost"].value == 0.25
    assert metrics["student/gained"].value == 0.25
    assert metrics["baseline/lost"].value == 0.5
    assert metrics["teacher/f1"].value == 0.5
    assert "teacher/flips" not in metrics


def test_summary_says_which_is_nearer_only_where_it_can_be_told(sides):
    assert "it is nearer than the baseline" in build(sides).summary
    swapped = {**sides, "final": sides["baseline"], "baseline": sides["final"]}
    assert "it is farther than the baseline" in build(swapped).summary
    assert "no difference from the baseline" in build({**sides, "baseline": sides["final"]}).summary
    few = {
        name: replace(side, fidelity=Fidelity(side.fidelity.rows[:8]))
        for name, side in sides.items()
    }
    said = build(few).summary
    assert "nothing is concluded beside the baseline" in said
    assert "8 held-out records are too few to conclude from" in said
    one = {
        name: replace(side, fidelity=Fidelity(side.fidelity.rows[:1]))
        for name, side in sides.items()
    }
    assert "nan" not in build(one).summary
    del sides["baseline"]
    report = build(sides)
    assert "There is no baseline" in report.summary
    assert not any("baseline" in name for name in report.metrics)


def test_differences_are_paired(sides):
    found = build(sides).metrics["student_minus_baseline/kl"]
    rows = [
        (a.kl - b.kl, a.tokens)
        for a, b in zip(sides["final"].fidelity.rows, sides["baseline"].fidelity.rows, strict=True)
    ]
    wanted = sum(gap * tokens for gap, tokens in rows) / sum(tokens for _, tokens in rows)
    assert found.value == pytest.approx(wanted)
    assert found.low < found.value < found.high < 0
    assert (found.n, found.unit) == (24, "nats/token")


def test_sides_survive_their_journal(sides):
    for side in sides.values():
        again = ModelFidelity.from_json(side.to_json())
        assert again.to_json() == side.to_json()
        assert np.array_equal(again.bins, side.bins)


def test_depths_are_counted_by_runs_that_double():
    rows = [np.arange(1.0, 8.0), np.array([10.0, 20.0])]
    assert bin_by_position(rows) == ((11.0, 2.0), (22.0, 2.0), (7.0, 2.0), (18.0, 3.0))
    assert bin_by_position([]) == ()


def test_curves_tell_reliability_depth_and_training(sides):
    depth = ((4.0, 2.0), (2.0, 2.0), (1.0, 4.0))
    sides["final"] = replace(sides["final"], depth=depth)
    losses = {"student, forward_kl": [(step, 1 / step) for step in range(1, 200)]}
    budget = TrainingBudget(10, 100, 50, 1000, 2000)
    report = build_report(
        sides,
        {"final": budget, "baseline": budget},
        title="T",
        seed=0,
        passed_over={},
        losses=losses,
    )
    found = {section.title: section.curves for section in report.sections}
    (by_depth,) = found["Beliefs"]
    assert by_depth.is_log
    drawn = {one.name: one for one in by_depth.series}
    assert drawn["student"].points == ((1.0, 2.0), (2.0, 1.0), (3.5, 0.25))
    (reliable,) = found["Calibration"]
    assert reliable.diagonal
    assert [one.name for one in reliable.series] == [
        "teacher",
        "baseline",
        "student",
        "student, scaled",
    ]
    count, said, came = sides["final"].bins.sum(0)
    student = next(one for one in reliable.series if one.name == "student")
    assert student.points[0] == pytest.approx((said[0] / count[0], came[0] / count[0]))
    (trained,) = found["Budget and size"]
    steps = [x for x, _ in trained.series[0].points]
    assert len(steps) <= 48
    assert steps[0] >= 1
    assert trained.series[0].points[0][1] > trained.series[0].points[-1][1]


def test_of_a_step_done_twice_the_last_value_counts(tmp_path):
    lines = [("loss", 1, 3.0), ("loss", 2, 2.0), ("baseline/loss", 1, 9.0), ("loss", 2, 1.5)]
    text = "".join(
        json.dumps({"name": name, "step": step, "value": value}) + "\n"
        for name, step, value in lines
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    found = read_loss_curves(tmp_path / "metrics.jsonl", ["loss", "baseline/loss", "other"])
    assert found == {"loss": [(1, 3.0), (2, 1.5)], "baseline/loss": [(1, 9.0)], "other": []}
    assert read_loss_curves(tmp_path / "none.jsonl", ["loss"]) == {"loss": []}


def test_a_metric_that_was_cut_is_left_out_of_the_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = json.dumps({"name": "loss", "value": 2.0, "step": 1})
    path.write_text(f'{{"name": "lo\n{row}\n{{"na')
    assert read_loss_curves(path, ["loss"]) == {"loss": [(1, 2.0)]}
