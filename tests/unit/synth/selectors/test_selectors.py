"""Selectors against plain references; what is dropped has its reason, and order says nothing."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.records import Message, Record
from stillroom.synth.interfaces import SELECTORS, CandidateSet, FilterContext
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.selection import (
    assign_clusters,
    choose_facilities,
    choose_farthest,
    cover_greedily,
)

NAMES = SELECTORS.names()


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(count, dimensions=8, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((count, dimensions)))


class Table:
    """An embedder that looks texts up."""

    fingerprint, truncated, max_tokens = "table", 0, 512

    def __init__(self, rows):
        self._rows = rows
        self.dimensions = rows.shape[1]

    def embed(self, texts, *, kind):
        return np.stack([self._rows[int(text.split()[1])] for text in texts])


def make_pool(rows, scores=None, order=None):
    records = [Record((Message("assistant", f"record {at}"),)) for at in range(len(rows))]
    order = list(range(len(rows))) if order is None else order
    context = FilterContext(models=ModelPool(models={("embedder", "m"): Table(rows)}))
    given = [{"s": scores[at]} if scores is not None else {} for at in order]
    return CandidateSet([records[at] for at in order], given, context)


def select(name, pool, **more):
    if name != "top":
        more = {"embedder": "m", **more}
    return SELECTORS.build({"name": name, **more}).select(pool)


def texts(pool, selection):
    return {pool.records[at].messages[0].content for at in selection.kept}


SETTINGS = {
    "semdedup": {"threshold": 0.5},
    "facility_location": {"budget": 7},
    "k_center": {"budget": 7},
    "cluster_balance": {"budget": 7},
    "diverse_best": {"budget": 7, "score": "s", "threshold": 0.5},
    "top": {"budget": 7, "score": "s"},
}


@pytest.mark.parametrize("name", NAMES)
def test_order_says_nothing_and_everything_has_its_verdict(name):
    rows = draw(40)
    scores = [random.Random(at).random() for at in range(40)]
    pool = make_pool(rows, scores)
    selection = select(name, pool, **SETTINGS[name])
    assert set(selection.kept) | set(selection.dropped) == set(range(40))
    assert not set(selection.kept) & set(selection.dropped)
    assert all(not one.keep and one.reason for one in selection.dropped.values())
    order = list(range(40))
    random.Random(1).shuffle(order)
    shuffled = make_pool(rows, scores, order)
    again = select(name, shuffled, **SETTINGS[name])
    assert texts(shuffled, again) == texts(pool, selection)
    assert len(selection.kept) == 7 or name == "semdedup"


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_pool_gives_nothing(name):
    selection = select(name, make_pool(draw(1)[:0].reshape(0, 8)), **SETTINGS[name])
    assert (selection.kept, dict(selection.dropped)) == ((), {})


def test_semdedup_keeps_one_of_each_and_tells_which():
    base = draw(30, 32, seed=4)
    noise = np.random.default_rng(5).standard_normal((30, 32)) * 0.02
    pool = make_pool(unit(np.concatenate([base, base + noise])))
    selection = select("semdedup", pool, threshold=0.95, clusters=1)
    numbers = {at % 30 for at in selection.kept}
    assert len(selection.kept) == len(numbers) == 30
    for at, verdict in selection.dropped.items():
        assert verdict.reason == "means the same as one kept"
        assert verdict.score > verdict.limit == 0.95
        assert int(verdict.against.split()[-1]) % 30 == at % 30


def test_semdedup_within_clusters_is_exact_and_never_drops_both():
    rows = draw(200, 4, seed=2)
    pool = make_pool(rows)
    for keep in ("farthest", "closest"):
        selection = select("semdedup", pool, threshold=0.8, keep=keep, clusters=5)
        kept = rows[list(selection.kept)]
        for at in selection.dropped:
            assert (kept @ rows[at]).max() > 0.8
    chain = unit([[1, 0.0], [0.95, 0.31], [0.8, 0.6], [0.55, 0.83]])
    selection = select("semdedup", make_pool(chain), threshold=0.9, clusters=1, keep="closest")
    for at in selection.dropped:
        assert max(float(chain[at] @ chain[other]) for other in selection.kept) > 0.9


def reference_semdedup(rows, groups, limit, *, greedy):
    """SemDeDup by plain loops: within each group from the center's far side, what is near falls.

    The paper compares with all that stand before; ``greedy`` with those of them that are kept.
    """
    fell = {}
    for group in groups:
        center = np.mean([rows[at] for at in group], axis=0)
        center /= np.linalg.norm(center)
        order = sorted(group, key=lambda at: (round(float(rows[at] @ center), 6), at))
        for place, at in enumerate(order):
            before = [one for one in order[:place] if not greedy or one not in fell]
            near = [one for one in before if float(rows[at] @ rows[one]) > limit]
            if near:
                fell[at] = near
    return fell


@pytest.mark.parametrize("seed", range(4))
def test_semdedup_end_to_end_is_that_of_plain_loops(seed):
    """Topics far apart and close in themselves, each with chains of near ones."""
    rng = np.random.default_rng(seed)
    topics = np.eye(6, 24)
    rows, groups = [], []
    for topic in topics:
        group = []
        for _ in range(8):
            point = topic + rng.normal(0, 0.03, 24)
            for _ in range(rng.integers(1, 5)):  # a walk: neighbors are near, its ends are not
                group.append(len(rows))
                rows.append(point)
                point = point + rng.normal(0, 0.012, 24)
        groups.append(group)
    rows = unit(rows)
    limit = 0.998
    paper = reference_semdedup(rows, groups, limit, greedy=False)
    ours = reference_semdedup(rows, groups, limit, greedy=True)
    pool = make_pool(rows)
    found = select("semdedup", pool, threshold=limit, clusters=6)
    assert set(found.dropped) == set(ours)
    assert set(found.kept) == set(range(len(rows))) - set(ours)
    assert 0 < len(ours) < len(paper) < len(rows)
    assert set(ours) < set(paper)
    for at in set(paper) - set(ours):  # the paper lets it fall to what itself fell
        assert set(paper[at]) <= set(ours)


def test_semdedup_finds_every_exact_copy_whatever_its_clusters():
    base = draw(120, 12, seed=3)
    rows = np.concatenate([base, base[::2], base[::3]])
    found = select("semdedup", make_pool(rows), threshold=0.999)
    origin = [*range(120), *range(0, 120, 2), *range(0, 120, 3)]
    assert sorted(origin[at] for at in found.kept) == list(range(120))


def test_scores_may_say_which_duplicate_stays():
    rows = unit([[1, 0], [1, 0.01], [0, 1]])
    pool = make_pool(rows, [0.1, 0.9, 0.5])
    selection = select("semdedup", pool, threshold=0.9, keep="score", score="s", clusters=1)
    assert set(selection.kept) == {1, 2}


def worth(rows, kept):
    return float(np.maximum(rows @ rows[list(kept)].T, 0).max(1).sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 9), st.integers(1, 3), st.integers(0, 1000))
def test_facility_location_is_within_its_bound_of_the_best(count, budget, seed):
    rows = draw(count, 3, seed)
    kept = [at for at, _ in choose_facilities(rows, budget)]
    best = max(worth(rows, one) for one in itertools.combinations(range(count), budget))
    assert worth(rows, kept) >= (1 - 1 / np.e) * best - 1e-4
    assert len(set(kept)) == budget


def test_lazy_greedy_chooses_what_plain_greedy_does():
    rows = draw(60, 5, seed=7)
    lazy = list(choose_facilities(rows, 12))
    chosen = []
    for at, gain in lazy:
        before = worth(rows, chosen) if chosen else 0.0
        gains = [worth(rows, [*chosen, other]) - before for other in range(60)]
        assert gains[at] == pytest.approx(max(gains), abs=2e-3)
        assert gain == pytest.approx(gains[at], abs=2e-3)
        chosen.append(at)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 9), st.integers(2, 3), st.integers(0, 1000))
def test_k_center_is_within_twice_the_best_radius(count, budget, seed):
    rows = draw(count, 3, seed)

    def radius(kept):  # the bound holds for metrics: the chord, not the cosine
        gaps = np.linalg.norm(rows[:, None] - rows[list(kept)][None], axis=2)
        return float(gaps.min(1).max())

    kept = [at for at, _ in choose_farthest(rows, budget, 0)]
    best = min(radius(one) for one in itertools.combinations(range(count), budget))
    assert radius(kept) <= 2 * best + 1e-4


def test_clusters_are_those_that_are_there():
    centers = unit(np.eye(4))
    rows = unit(np.repeat(centers, 25, axis=0) + np.random.default_rng(0).normal(0, 0.1, (100, 4)))
    held, found = assign_clusters(rows, 4, seed=1)
    assert sorted(np.bincount(held)) == [25] * 4
    assert np.allclose(np.sort((found @ centers.T).max(1)), 1, atol=0.05)
    again, _ = assign_clusters(rows, 4, seed=1)
    assert (held == again).all()
    assert len(set(assign_clusters(rows[:3], 10)[0])) == 3


def test_clusters_leave_little_more_distance_than_the_true_ones():
    """One start of k-means may miss a topic; it should not miss many."""
    left = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        topics = np.repeat(np.eye(12, 32), 20, axis=0)
        rows = unit(topics + rng.normal(0, 0.12, topics.shape))
        held, centers = assign_clusters(rows, 12, seed=seed)
        truth = unit(rows.reshape(12, 20, 32).sum(1))
        ours = float((1 - (rows * centers[held]).sum(1)).mean())
        left.append(ours / float((1 - (rows * np.repeat(truth, 20, 0)).sum(1)).mean()))
    assert np.mean(left) < 1.1


def test_balance_takes_from_small_topics_too():
    topics = np.repeat(np.eye(3), [90, 6, 4], axis=0)
    rows = unit(topics + np.random.default_rng(0).normal(0, 0.02, (100, 3)))
    selection = select("cluster_balance", make_pool(rows), budget=12, clusters=3)
    bounds = ((0, 90), (90, 96), (96, 100))
    counts = [sum(low <= at < high for at in selection.kept) for low, high in bounds]
    assert counts == [4, 4, 4]


def test_the_best_come_first_and_their_likes_are_passed_over():
    rows = unit([[1, 0], [1, 0.01], [0, 1], [1, 1]])
    pool = make_pool(rows, [0.5, 0.9, 0.7, 0.1])
    selection = select("diverse_best", pool, budget=2, score="s", threshold=0.9)
    assert selection.kept == (1, 2)
    assert selection.dropped[0].reason in {"resembles a better one", "beyond the budget"}
    whole = select("diverse_best", pool, budget=9, score="s", threshold=0.9)
    assert whole.kept == (1, 2, 3)
    assert whole.dropped[0].against.endswith("record 1")


def test_a_share_is_rounded_up():
    pool = make_pool(draw(10), list(range(10)))
    assert select("top", pool, score="s", share=0.11).kept == (9, 8)


def test_greedy_cover_never_lets_a_row_fall_to_what_fell():
    rows = draw(300, 6, seed=9)
    found = list(cover_greedily(rows, range(300), 0.7))
    kept = {at for at, other, _ in found if other < 0}
    assert all(other in kept for _, other, _ in found if other >= 0)
    for at, other, near in found:
        if other >= 0:
            assert near == pytest.approx(float(rows[at] @ rows[other]), abs=1e-5)
            assert near > 0.7
