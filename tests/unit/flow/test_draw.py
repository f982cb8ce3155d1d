"""The draw finds the stated share of forged segments, wherever they are, and costs its mean."""

import itertools
import math
import random

import pytest

from stillroom.flow.draw import (
    Stratum,
    draw_segments,
    find_detected_count,
    find_single_chance,
)

COSTS = [5.0] * 45 + [0.2] * 170 + [0.01] * 440  # as of a run of make: few hold most


@pytest.fixture(scope="module")
def draws():
    return [draw_segments(COSTS, 59, seed)[0] for seed in range(2000)]


def spread(strata, count):
    """Return the positions, of segments in order of cost, that a draw misses most often."""
    left = [one.size for one in strata]
    starts = list(itertools.accumulate((one.size for one in strata), initial=0))
    forged = []
    for _ in range(count):
        worst = max(range(len(strata)), key=lambda h: (left[h] - strata[h].drawn) / left[h])
        left[worst] -= 1
        forged.append(starts[worst] + left[worst])
    return forged


@pytest.mark.parametrize("forge", ["worst", "costly", "cheap", "random"])
def test_the_stated_share_is_found_in_19_of_20_draws_wherever_it_is(forge, draws):
    _, strata = draw_segments(COSTS, 59, 0)
    count = find_detected_count(strata)
    assert count <= math.ceil(0.05 * len(COSTS))
    forged = {
        "worst": spread(strata, count),
        "costly": range(count),
        "cheap": range(len(COSTS) - count, len(COSTS)),
        "random": random.Random(1).sample(range(len(COSTS)), count),
    }[forge]
    found = sum(not drawn.isdisjoint(forged) for drawn in draws) / len(draws)
    assert found > 0.95 - 3 * math.sqrt(0.05 * 0.95 / len(draws))
    fewer = spread(strata, count - 4)
    if forge == "worst":  # and what is stated is no smaller than it must be
        found = sum(not drawn.isdisjoint(fewer) for drawn in draws) / len(draws)
        assert found < 0.95


def test_a_draw_costs_about_its_mean(draws):
    mean = sum(COSTS) * 59 / len(COSTS)
    costs = [sum(COSTS[one] for one in drawn) for drawn in draws[:300]]
    assert sum(costs) / len(costs) == pytest.approx(mean, rel=0.02)
    assert max(costs) < 1.35 * mean  # of plain draws the 300th costs twice the mean


def test_every_segment_is_drawn_as_often_whatever_its_cost(draws):
    for places in (range(45), range(45, 215), range(215, 655)):
        often = sum(len(drawn & {*places}) for drawn in draws) / len(draws) / len(places)
        assert often == pytest.approx(59 / 655, rel=0.05)


@pytest.mark.parametrize(("total", "drawn"), [(12, 4), (11, 7), (9, 8)])
def test_the_worst_spread_is_the_worst_of_all(total, drawn):
    strata = [Stratum(total // 2, drawn // 2), Stratum(total - total // 2, drawn - drawn // 2)]
    for confidence in (0.5, 0.9, 0.99):
        count = find_detected_count(strata, confidence)

        def missed(forged):
            pairs = itertools.product(*(range(one.size + 1) for one in strata))
            return max(
                math.prod(
                    math.comb(one.size - k, one.drawn) / math.comb(one.size, one.drawn)
                    for one, k in zip(strata, pair, strict=True)
                )
                for pair in pairs
                if sum(pair) == forged
            )

        assert 1 - missed(count) >= confidence > 1 - missed(count - 1)


@pytest.mark.parametrize(
    ("total", "drawn", "least"), [(100_000, 59, 4951), (305, 15, 55), (20, 20, 1), (0, 0, 0)]
)
def test_so_many_are_found(total, drawn, least):
    picked, strata = draw_segments([0.0] * total, drawn, 3)
    assert len(picked) == sum(one.drawn for one in strata) == drawn
    assert sum(one.size for one in strata) == total
    assert find_detected_count(strata) == least
    assert find_single_chance(strata) <= drawn / (total or 1)
