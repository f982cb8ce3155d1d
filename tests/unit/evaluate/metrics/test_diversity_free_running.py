import numpy as np
import pytest

from stillroom.evaluate.metrics.diversity import distinct_ngram_share, excess_accumulated_error


def test_excess_error():
    rng = np.random.default_rng(0)
    forced = [rng.uniform(0.5, 1.5, int(rng.integers(3, 9))) for _ in range(12)]
    assert excess_accumulated_error(forced, forced).value == pytest.approx(0)
    doubled = excess_accumulated_error([2 * row for row in forced], forced)
    assert doubled.value == pytest.approx(1)
    assert doubled.n == 12
    free = [np.linspace(1, 2, 5), np.linspace(1, 4, 3)]
    steady = [np.ones(2), np.ones(4)]
    depths = [np.mean([row[at] for row in free if len(row) > at]) for at in range(4)]
    assert excess_accumulated_error(free, steady).value == pytest.approx(sum(depths) / 4 - 1)


def test_excess_error_of_nothing_is_said_to_be_nothing():
    assert excess_accumulated_error([], []).note == "nothing was measured"
    assert np.isnan(excess_accumulated_error([np.ones(2)] * 3, [np.zeros(0)] * 3).value)


def test_repetition():
    assert distinct_ngram_share([1, 2, 3], 1) == 1
    assert distinct_ngram_share([1, 1, 1, 1], 2) == pytest.approx(1 / 3)
    assert distinct_ngram_share([1], 2) == 1
