import math

import numpy as np
import pytest

from stillroom.text.bm25 import BM25Parameters, rank_rows, weigh_term

ROWS, COUNTS = np.array([1, 4]), np.array([2.0, 1.0])
LENGTHS, POPULATION = np.array([0.5, 1.5]), 6


def test_a_term_weighs_as_robertson_and_zaragoza_say():
    one = weigh_term(BM25Parameters(), ROWS, COUNTS, LENGTHS, POPULATION)
    rarity = math.log(1 + (6 - 2 + 0.5) / (2 + 0.5))
    expected = [rarity * n / (n + 1.2 * (0.25 + 0.75 * x)) for n, x in ((2, 0.5), (1, 1.5))]
    assert one.values == pytest.approx(expected)
    assert one.most == max(one.values)


def test_ranked_rows_are_those_of_the_sum_and_ties_go_by_row():
    one = weigh_term(BM25Parameters(b=0.0), ROWS, np.ones(2), LENGTHS, POPULATION)
    rows, scores = rank_rows([("a", 1.0, one)], POPULATION, 5, None)
    assert rows.tolist() == [1, 4]
    assert scores[0] == scores[1]
