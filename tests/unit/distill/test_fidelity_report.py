import numpy as np
import pytest

from stillroom.distill.fidelity import Answered, Fidelity, RecordFidelity, Scaled, Side
from stillroom.distill.fidelity_report import Budget, build_report
from stillroom.evaluate.calibration import BINS


def make_side(rng, kl, *, answers=(), free=(), forced=()):
    rows = tuple(
        RecordFidelity(f"r{at}", kl + rng.normal(0, 0.05), kl, 0.5, 2.0, 5 + at, 0.4, 1.0, 1.5, 0.6)
        for at in range(8)
    )
    bins = rng.uniform(1, 2, (8, 3, BINS))
    half = tuple(tuple(row) for row in bins[0].tolist())
    scaled = tuple(Scaled(5, 1.9, 0.5, half, half) for _ in range(4))
    return Side(Fidelity(rows), bins, 1.1, scaled, answers, (), free, forced)


def answer(text, at=0, reference="the cat sat"):
    return Answered(f"r{at}", text, reference, tuple(range(len(text.split()))), has_ended=True)


@pytest.fixture
def sides():
    rng = np.random.default_rng(0)
    depth = tuple(np.ones(4) for _ in range(4))
    said = {
        "teacher": ("the cat sat", "the cat sat", "a dog", "a dog"),
        "final": ("The cat sat.", "a dog", "the cat sat", "a bird"),
        "control": ("a dog", "a dog", "a dog", "a dog"),
    }
    written = {name: tuple(map(answer, texts, range(4))) for name, texts in said.items()}
    return {
        "teacher": make_side(rng, 0.0, answers=written["teacher"]),
        "initial": make_side(rng, 4.0),
        "final": make_side(rng, 1.0, answers=written["final"], free=depth, forced=depth),
        "control": make_side(rng, 2.0, answers=written["control"], free=depth, forced=depth),
    }


def build(sides):
    budget = Budget(10, 100, 50, 1000, 2000)
    budgets = {name: budget for name in sides if name != "initial"}
    return build_report(sides, budgets, title="T", seed=0, passed_over={})


def test_flips_are_counted_after_normalization_and_by_what_became_of_them(sides):
    metrics = build(sides).metrics
    assert metrics["student/flips"].value == 0.75
    assert metrics["student/lost"].value == 0.25
    assert metrics["student/gained"].value == 0.25
    assert metrics["control/lost"].value == 0.5
    assert metrics["teacher/f1"].value == 0.5
    assert "teacher/flips" not in metrics


def test_summary_says_which_is_nearer_only_where_it_can_be_told(sides):
    assert "it is nearer than the control" in build(sides).summary
    swapped = {**sides, "final": sides["control"], "control": sides["final"]}
    assert "it is farther than the control" in build(swapped).summary
    assert "no difference from the control" in build({**sides, "control": sides["final"]}).summary
    del sides["control"]
    report = build(sides)
    assert "There is no control" in report.summary
    assert not any("control" in name for name in report.metrics)


def test_differences_are_paired(sides):
    found = build(sides).metrics["student_minus_control/kl"]
    rows = [
        (a.kl - b.kl, a.tokens)
        for a, b in zip(sides["final"].fidelity.rows, sides["control"].fidelity.rows, strict=True)
    ]
    wanted = sum(gap * tokens for gap, tokens in rows) / sum(tokens for _, tokens in rows)
    assert found.value == pytest.approx(wanted)
    assert found.low < found.value < found.high < 0
    assert (found.n, found.unit) == (8, "nats/token")


def test_sides_survive_their_journal(sides):
    for side in sides.values():
        again = Side.from_json(side.to_json())
        assert again.to_json() == side.to_json()
        assert np.array_equal(again.bins, side.bins)
