"""Chances follow the labels they were fitted on, and move with the prevalence as Bayes says."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter

from stillroom.errors import DataError
from stillroom.forensics.inference.results import Calibrator, adjust_prevalence, fit_calibrator


def draw(n=4000, slope=0.5, offset=-1.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(1, 3, n)
    chances = 1 / (1 + np.exp(-(slope * logits + offset)))
    return (rng.random(n) < chances).astype(int), logits


def test_platt_finds_slope_and_offset():
    labels, logits = draw()
    found = fit_calibrator("platt", labels, logits)
    assert found.slope == pytest.approx(0.5, abs=0.05)
    assert found.offset == pytest.approx(-1.0, abs=0.1)


def test_temperature_keeps_the_sign_of_a_logit():
    labels, logits = draw(offset=0.0)
    found = fit_calibrator("temperature", labels, logits)
    assert found.offset == 0
    assert found.slope == pytest.approx(0.5, abs=0.05)
    assert ((found.chances(logits) > 0.5) == (logits > 0)).all()


def test_isotonic_is_the_nearest_rising_fit():
    labels, logits = draw(n=60)
    found = fit_calibrator("isotonic", labels, logits)
    order = np.argsort(logits)
    rows = labels[order].astype(float)
    wanted = np.array(
        [
            max(min(rows[j : k + 1].mean() for k in range(i, 60)) for j in range(i + 1))
            for i in range(60)
        ]
    )
    said = found.chances(logits[order])
    assert (np.diff(said) >= -1e-12).all()
    inner = (wanted > 0.02) & (wanted < 0.98)
    np.testing.assert_allclose(said[inner], wanted[inner], atol=1e-9)
    assert said.min() > 0
    assert said.max() < 1


def test_a_small_block_at_an_end_moves_no_other():
    labels = np.array([0, 1] + [0] * 9 + [1] * 10)
    found = fit_calibrator("isotonic", labels, np.arange(21.0)).chances(np.arange(21.0))
    np.testing.assert_allclose(found[1:11], 0.1)
    turned = fit_calibrator("isotonic", 1 - labels, -np.arange(21.0)).chances(-np.arange(21.0))
    np.testing.assert_allclose(turned, 1 - found)


def test_a_detector_that_is_turned_round_is_not_turned_back():
    labels, logits = draw()
    found = fit_calibrator("platt", labels, -logits)
    assert found.slope > 0
    assert np.ptp(found.chances(logits)) < 0.01  # it tells nothing, and says so


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic", "none"])
def test_round_trip(method):
    labels, logits = draw(n=60)
    found = fit_calibrator(method, labels, logits)
    again = TypeAdapter(Calibrator).validate_json(json.dumps(asdict(found)))
    np.testing.assert_array_equal(again.chances(logits, 0.1), found.chances(logits, 0.1))


def test_prevalence_is_bayes_rule():
    chances = np.array([0.9, 0.5, 0.1])
    odds = chances / (1 - chances) * (0.01 / 0.99)
    np.testing.assert_allclose(adjust_prevalence(chances, 0.5, 0.01), odds / (1 + odds))
    back = adjust_prevalence(adjust_prevalence(chances, 0.5, 0.01), 0.01, 0.5)
    np.testing.assert_allclose(back, chances)


def test_few_pictures_say_neither_never_nor_always():
    found = fit_calibrator("platt", [0] * 5 + [1] * 5, [-9.0] * 5 + [9.0] * 5)
    assert 0.04 < found.chances([-1e6])[0] < 0.1
    assert 0.9 < found.chances([1e6])[0] < 0.96


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DataError, match="both real and forged") as caught:
        fit_calibrator("platt", [1, 1], [0.1, 0.2])
    assert caught.value.code == "forensics.calibration"
    with pytest.raises(DataError, match="decides every file in advance") as caught:
        adjust_prevalence(np.array([0.5]), 0.5, 1.0)
    assert caught.value.code == "forensics.prevalence"
