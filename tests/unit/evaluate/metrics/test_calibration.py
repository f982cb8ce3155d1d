import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from stillroom.evaluate.metrics.calibration import (
    NUM_BINS,
    TemperatureScaler,
    bin_confidences,
    expected_calibration_error,
    fit_logistic,
)


def reference_error(confidence, right):
    """Guo et al. 2017, equation 3, one bin at a time."""
    total = 0.0
    for at in range(NUM_BINS):
        inside = (confidence > at / NUM_BINS) & (confidence <= (at + 1) / NUM_BINS)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


def test_error_is_the_papers():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.01, 1, 900), rng.random(900) < 0.6
    bins = [
        bin_confidences(torch.from_numpy(part), torch.from_numpy(hits))
        for part, hits in zip(np.split(confidence, 9), np.split(right, 9), strict=True)
    ]
    found = expected_calibration_error(bins)
    assert found.value == pytest.approx(reference_error(confidence, right))
    assert found.low < found.value < found.high
    assert expected_calibration_error(bins, bins).value == 0
    assert np.sum(bins, axis=0)[0].sum() == 900


def test_what_is_said_comes_true_then_the_error_is_small():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.05, 1, 20_000)
    right = rng.random(20_000) < confidence
    sure = np.sqrt(confidence)
    errors = [
        expected_calibration_error(
            [bin_confidences(torch.from_numpy(said), torch.from_numpy(right))]
        ).value
        for said in (confidence, sure)
    ]
    assert errors[0] < 0.02 < 0.1 < errors[1]


def test_ends_of_the_scale_have_a_bin():
    found = bin_confidences(torch.tensor([0.0, 1.0]), torch.tensor([False, True]))
    assert (found[0, 0], found[0, -1]) == (1, 1)


@pytest.mark.parametrize("true", [0.5, 0.9, 1.0, 2.2])
def test_fit_finds_the_temperature_that_labels_were_drawn_at(true):
    torch.manual_seed(0)
    logits = torch.randn(20_000, 12) * 2
    labels = torch.multinomial(torch.softmax(logits / true, -1), 1)[:, 0]
    fit = TemperatureScaler()
    for part, said in zip(logits.split(7000), labels.split(7000), strict=True):
        fit.add(part, said)
    logits, loss = logits.double(), torch.nn.functional.cross_entropy
    best = minimize_scalar(lambda t: float(loss(logits / t, labels)), bounds=(0.4, 2.6)).x
    assert fit.positions == 20_000
    assert fit.temperature == pytest.approx(best, rel=0.02)


def test_fit_stays_on_its_grid():
    assert TemperatureScaler().temperature == 1.0
    for labels, end in (([0, 0], 0.25), ([1, 2], 4.0)):
        fit = TemperatureScaler()
        fit.add(torch.tensor([[2.0, 0, 0], [2.0, 0, 0]]), torch.tensor(labels))
        assert fit.temperature == pytest.approx(end)


def test_nothing_measured_is_said():
    found = expected_calibration_error(np.zeros((0, 3, NUM_BINS)))
    assert found.note == "nothing was measured"


@pytest.mark.parametrize("with_offset", [True, False])
def test_platts_fit_is_where_the_likelihood_of_his_targets_is_flat(with_offset):
    rng = np.random.default_rng(3)
    scores = rng.normal(20, 40, 500)
    labels = (rng.random(500) < 1 / (1 + np.exp(-(scores - 10) / 20))).astype(float)
    slope, offset = fit_logistic(scores, labels, with_offset=with_offset)
    right = labels.sum()
    targets = np.where(labels == 1, (right + 1) / (right + 2), 1 / (502 - right))
    gap = 1 / (1 + np.exp(-(slope * scores + offset))) - targets
    assert abs(gap @ scores) < 1e-2
    if with_offset:
        assert abs(gap.sum()) < 1e-3
    else:
        assert offset == 0


def test_scores_that_separate_have_a_fit_and_inverted_ones_are_not_turned_round():
    labels = np.array([0.0] * 5 + [1.0] * 5)
    slope, _ = fit_logistic(labels, labels)
    assert 0 < slope < 10
    assert 0 < fit_logistic(-labels, labels)[0] < 1e-4
