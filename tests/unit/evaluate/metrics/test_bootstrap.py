import math
import tracemalloc

import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.evaluate.metrics.bootstrap import (
    MIN_UNITS,
    Metric,
    _jackknife,
    bootstrap,
    bootstrap_statistic,
    paired_difference,
    randomization_test,
    warn_small_sample,
)


def test_interval_holds_the_value_and_shrinks_with_n():
    rng = np.random.default_rng(3)
    small, large = (bootstrap(rng.normal(5, 1, n), name="x") for n in (20, 2000))
    assert small.low < small.value < small.high
    assert large.high - large.low < (small.high - small.low) / 4


def test_same_seed_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


@pytest.mark.parametrize(
    ("values", "note"), [([], "nothing was measured"), ([0.5], "one value has no interval")]
)
def test_too_few_values_have_no_interval_and_say_so(values, note):
    metric = bootstrap(values, name="x")
    assert (metric.to_json()["low"], metric.to_json()["high"]) == (None, None)
    assert metric.note == note
    assert metric.n == len(values)


def test_nothing_measured_is_null_not_zero():
    assert bootstrap([]).to_json()["value"] is None


def test_equal_values_say_that_no_spread_was_seen():
    metric = bootstrap([2.0] * 30)
    assert (metric.value, metric.low, metric.high) == (2, 2, 2)
    assert "no spread" in metric.note


def test_intervals_cover_the_truth_about_as_often_as_they_claim():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        metric = bootstrap(rng.exponential(1.0, 60), seed=seed, resamples=1000)
        inside += metric.low <= 1.0 <= metric.high
    assert 0.89 <= inside / 200 <= 0.99


def test_weights_make_a_mean_over_all_units_together():
    metric = bootstrap([1.0, 3.0], weights=[30, 10])
    assert metric.value == pytest.approx(1.5)


def test_median():
    assert bootstrap([1, 2, 100], statistic="median").value == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_measurement_is_refused_not_averaged(bad):
    with pytest.raises(DataError, match="value 1 of 'x'") as caught:
        bootstrap([1.0, bad], name="x")
    assert caught.value.code == "metric.not-finite"


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(DataError) as caught:
        bootstrap([1.0, 2.0], weights=weights)
    assert caught.value.code == "metric.weights"


def test_paired_difference_is_narrower_than_the_values_spread():
    rng = np.random.default_rng(1)
    hard = rng.random(100)
    gap = paired_difference(hard + 0.1 + 0.01 * rng.random(100), hard, name="gain")
    assert gap.low > 0.09
    assert gap.high < 0.12


@pytest.mark.parametrize(
    ("value", "count", "low", "high"),
    [(1, 25, 0.8628, 1), (0, 25, 0, 0.1372), (1, 3, 0.2924, 1)],  # Clopper and Pearson
)
def test_a_share_of_all_or_none_is_not_certain(value, count, low, high):
    metric = bootstrap([value] * count)
    assert (metric.low, metric.high) == pytest.approx((low, high), abs=1e-4)


def test_a_difference_or_a_time_that_is_always_1_is_no_share():
    assert bootstrap([1.0] * 25, unit="s").low == 1
    assert paired_difference([1.0] * 25, [0.0] * 25).low == 1


def test_unequal_lists_cannot_be_paired():
    with pytest.raises(DataError) as caught:
        paired_difference([1.0], [1.0, 2.0])
    assert caught.value.code == "metric.unpaired"


def test_json_round_trip():
    metric = Metric("x", 1.0, math.nan, math.nan, 1, "B", "why")
    again = Metric.from_json(metric.to_json())
    assert again.to_json() == metric.to_json()


def test_bootstrap_of_counts_is_that_of_means_where_both_can_be_had():
    values = np.random.default_rng(3).normal(size=40)
    one = bootstrap(values, seed=1)
    two = bootstrap_statistic(lambda counts: (counts @ values) / counts.sum(1), 40, seed=1)
    assert two.value == pytest.approx(one.value)
    assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=0.03)


def test_bootstrap_of_counts_says_where_there_was_nothing_to_measure():
    has = np.array([1.0, 0, 0, 0, 0])
    found = bootstrap_statistic(lambda counts: (counts @ has) / (counts @ has), 5, seed=0)
    assert found.value == 1
    assert "had nothing to measure" in found.note or found.note == "nothing to resample"
    assert bootstrap_statistic(lambda counts: counts[:, 0], 0).note == "nothing was measured"
    assert bootstrap_statistic(lambda counts: counts[:, 0], 1).note == "one value has no interval"


def test_randomization_agrees_with_every_assignment_of_signs():
    from itertools import product

    ours, theirs = [0.9, 0.4, 0.7, 0.8, 0.3, 0.9], [0.5, 0.5, 0.2, 0.6, 0.2, 0.4]
    gaps = np.subtract(ours, theirs)
    means = [abs(np.mean(gaps * signs)) for signs in product((-1, 1), repeat=6)]
    exact = np.mean([mean >= abs(gaps.mean()) - 1e-12 for mean in means])
    assert randomization_test(ours, theirs, resamples=40_000) == pytest.approx(exact, abs=0.01)
    assert randomization_test(ours, theirs) == randomization_test(theirs, ours)
    assert randomization_test(ours, ours) == 1.0
    assert randomization_test([], []) == 1.0


def test_randomization_refuses_what_cannot_be_paired():
    with pytest.raises(DataError):
        randomization_test([1.0], [1.0, 2.0])


def test_a_direction_is_concluded_from_enough_units_alone():
    shown = [Metric("gain", 1.0, 0.5, 1.5, n) for n in (3, MIN_UNITS - 1, MIN_UNITS)]
    assert [one.side() for one in shown] == [0, 0, 1]
    assert shown[-1].side(0.7) == 0
    assert Metric("gain", -1.0, -1.5, -0.5, 40).side() == -1
    assert Metric("gain", 1.0, n=40).side() == 0  # no interval
    assert warn_small_sample(3, "record") == (
        f"3 records are too few to conclude from ({MIN_UNITS} or more are required)."
    )
    assert warn_small_sample(1, "query", "queries").startswith("1 query is too few to conclude")
    assert warn_small_sample(MIN_UNITS, "record") == ""


@pytest.mark.parametrize(
    ("better", "worse", "p_value", "side"),
    [
        (3, 0, 0.25, 0),
        (5, 0, 0.0625, 0),
        (6, 0, 0.03125, 1),
        (9, 1, 22 / 1024, 1),
        (0, 6, 2**-5, -1),
    ],
)
def test_few_differing_pairs_are_judged_by_the_exact_test_of_mcnemar(better, worse, p_value, side):
    same = [1.0] * 30
    ours = [*same, *[1.0] * better, *[0.0] * worse]
    gap = paired_difference(ours, [*same, *[0.0] * better, *[1.0] * worse], name="gap")
    assert gap.p_value == pytest.approx(p_value)
    assert gap.side() == side
    assert Metric.from_json(gap.to_json()) == gap


def test_many_differing_pairs_and_other_values_are_judged_by_the_interval():
    many = paired_difference([1.0] * 40, [0.0] * 25 + [1.0] * 15)
    shares = paired_difference([0.5] * 3 + [0.0] * 27, [0.0] * 30)
    weighted = paired_difference([1.0] * 3 + [0.0] * 27, [0.0] * 30, weights=[1.0] * 30)
    for gap in (many, shares, weighted):
        assert math.isnan(gap.p_value)
        assert gap.side() == 1
        assert "p_value" not in gap.to_json()


def test_many_units_take_little_memory():
    right = (np.arange(1500) % 3 == 0).astype(float)
    tracemalloc.start()
    try:
        found = bootstrap_statistic(lambda counts: (counts @ right) / counts.sum(1), len(right))
        assert tracemalloc.get_traced_memory()[1] < 75 * 2**20
    finally:
        tracemalloc.stop()
    assert (found.low, found.high) == pytest.approx((0.309, 0.357), abs=0.002)


@pytest.mark.parametrize("values", [[1, 5], [3, 1, 2], [2, 2, 9, 2, 0, 4], [7, 1, 1, 8, 3]])
def test_the_jackknife_of_a_median_leaves_out_each_value(values):
    data = np.array(values, dtype=float)
    expected = [np.median(np.delete(data, index)) for index in range(len(data))]
    assert _jackknife(data, None, "median").tolist() == expected
