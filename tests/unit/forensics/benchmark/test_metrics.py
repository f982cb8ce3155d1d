"""Figures are exact on ties, and the known faults of other benchmarks are not ours."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import DataError
from stillroom.forensics.benchmark.metrics import (
    FALSE_POSITIVE_RATES,
    bootstrap_auc,
    brier_score,
    expected_calibration_error,
    measure_scores,
    roc_auc,
    roc_curve,
    run_delong_test,
)

pairs = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6).map(lambda n: n / 6)), min_size=2, max_size=60
).filter(lambda rows: {0, 1} == {label for label, _ in rows})


def measure(labels, scores):
    return measure_scores(labels, scores, range(len(labels)), resamples=50)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_area_is_the_share_of_pairs_in_order(rows):
    forged = [score for label, score in rows if label]
    real = [score for label, score in rows if not label]
    wins = sum((up > down) + (up == down) / 2 for up in forged for down in real)
    assert roc_auc(*zip(*rows, strict=True)) == pytest.approx(
        wins / len(forged) / len(real), abs=1e-12
    )


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_precision_is_averaged_over_thresholds(rows):
    total, before = 0.0, 0.0
    count = sum(label for label, _ in rows)
    for threshold in sorted({score for _, score in rows}, reverse=True):
        caught = [label for label, score in rows if score >= threshold]
        recall = sum(caught) / count
        total += (recall - before) * sum(caught) / len(caught)
        before = recall
    assert measure(*zip(*rows, strict=True))["ap"].value == pytest.approx(total, abs=1e-12)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_curve_area_and_equal_error_agree(rows):
    labels, scores = zip(*rows, strict=True)
    curve = roc_curve(labels, scores)
    area = float(np.trapezoid(curve.true_rates, curve.false_rates))
    assert area == pytest.approx(roc_auc(labels, scores), abs=1e-12)
    equal = measure(labels, scores)["eer"].value
    assert 0 <= equal <= 1
    point = np.array([equal, 1 - equal])  # lies on a piece of the curve
    corners = np.stack([curve.false_rates, curve.true_rates], axis=1)
    gaps = []
    for start, stop in itertools.pairwise(corners):
        along = stop - start
        share = np.clip((point - start) @ along / (along @ along), 0, 1)
        gaps.append(np.linalg.norm(start + share * along - point))
    assert min(gaps) < 1e-9


@given(pairs, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_rate_at_is_the_best_allowed(rows, most):
    forged = [score for label, score in rows if label]
    real = [score for label, score in rows if not label]
    best = 0.0
    for threshold in {score for _, score in rows}:
        if sum(score >= threshold for score in real) / len(real) <= most + 1e-12:
            best = max(best, sum(score >= threshold for score in forged) / len(forged))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FALSE_POSITIVE_RATES, "most", most)
        assert measure(*zip(*rows, strict=True))["most"].value == pytest.approx(best)


def test_scores_that_tell_nothing_have_an_equal_error_of_one_half():
    """A benchmark that takes the nearest vertex says 0.0 of these."""
    assert measure([0, 1] * 20, [0.5] * 40)["eer"].value == 0.5


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_one_class_has_no_figure(labels):
    assert all(figure(labels, [0.1, 0.9]) is None for figure in (roc_auc, roc_curve))
    assert {one.note for one in measure(labels, [0.1, 0.9]).values()} == {"one class is missing"}
    assert run_delong_test(labels, [0.1, 0.9], [0.2, 0.8]) is None
    assert bootstrap_auc(labels, [0.1, 0.9], ["a", "b"]).note == "one class is missing"


def test_calibration_of_a_perfect_and_of_a_boastful_detector():
    rng = np.random.default_rng(0)
    chances = rng.uniform(size=20_000)
    labels = (rng.uniform(size=20_000) < chances).astype(int)
    for mass in (False, True):
        assert expected_calibration_error(labels, chances, equal_mass=mass) < 0.02
        boast = np.where(chances > 0.5, 0.99, 0.01)
        assert expected_calibration_error(labels, boast, equal_mass=mass) == pytest.approx(
            0.24, abs=0.02
        )
    assert brier_score([0, 1], [0.25, 0.75]) == pytest.approx(0.0625)


def test_interval_over_clips_is_wider_than_over_their_frames():
    rng = np.random.default_rng(1)
    clips = np.repeat(np.arange(40), 25)
    labels = (clips % 2).astype(int)
    scores = rng.normal(0, 1, 40)[clips] + 0.8 * labels + rng.normal(0, 0.1, len(clips))
    by_clip = bootstrap_auc(labels, scores, clips.tolist())
    by_frame = bootstrap_auc(labels, scores, list(range(len(clips))))
    assert by_clip.value == by_frame.value
    assert by_clip.n == 40
    assert by_clip.high - by_clip.low > 2 * (by_frame.high - by_frame.low)
    assert by_clip == bootstrap_auc(labels, scores, clips.tolist())


@pytest.mark.parametrize("single", [0, 1])
def test_draws_without_a_class_are_no_perfect_ones(single):
    rng = np.random.default_rng(0)
    labels = [single] * 50 + [1 - single] * 50
    groups = ["collection"] * 50 + list(range(50))  # a third of the draws have none
    figures = measure_scores(labels, rng.normal(0, 1, 100), groups)
    assert figures["eer"].low > 0.2
    assert figures["ap"].high < 0.9
    high = {name: figures[name].high for name in FALSE_POSITIVE_RATES}
    assert max(high.values()) < 0.4


def test_delong_agrees_with_resampling():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 150)
    shared = rng.normal(size=300)
    ours = np.round(shared + labels * 1.2 + rng.normal(0, 0.5, 300), 1)
    theirs = np.round(shared + labels * 0.8 + rng.normal(0, 0.5, 300), 1)
    difference, p = run_delong_test(labels, ours, theirs)
    assert difference == pytest.approx(roc_auc(labels, ours) - roc_auc(labels, theirs))
    draws = []
    for _ in range(300):
        at = np.concatenate([rng.integers(0, 150, 150), rng.integers(150, 300, 150)])
        draws.append(roc_auc(labels[at], ours[at]) - roc_auc(labels[at], theirs[at]))
    z = difference / np.std(draws)
    from statistics import NormalDist

    assert p == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), abs=0.03)
    assert run_delong_test(labels, ours, ours) == (0.0, 1.0)


def test_two_thousand_resamples_of_15_499_rows_take_seconds():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 15_499)
    scores = rng.normal(size=15_499) + labels
    start = time.process_time()
    found = bootstrap_auc(labels, scores, (np.arange(15_499) // 5).tolist(), resamples=200)
    assert time.process_time() - start < 5
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 1], [0.1]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, float("nan")])],
)
def test_what_is_no_score_is_refused(labels, scores):
    with pytest.raises(DataError) as caught:
        roc_auc(labels, scores)
    assert caught.value.code == "forensics.scores"


def test_raw_scores_are_no_chances():
    with pytest.raises(DataError):
        expected_calibration_error([0, 1], [-2.0, 3.0])
