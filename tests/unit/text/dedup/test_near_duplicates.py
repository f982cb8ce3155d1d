"""The join finds what comparing every pair finds, and words are those of ``split_words``."""

import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.text.dedup import near_duplicates, shingles
from stillroom.text.dedup.near_duplicates import find_duplicates, find_near_duplicates
from stillroom.text.dedup.shingles import build_shingle_sets
from stillroom.text.unicode import split_words


def grams(text, n):
    found = split_words(text)
    width = min(n, len(found))
    return (
        {tuple(found[at : at + width]) for at in range(len(found) - width + 1)} if width else set()
    )


def similarity(one, other):
    return len(one & other) / len(one | other) if one and other else 0.0


def brute_force(texts, n, threshold, order):
    sets = [grams(text, n) for text in texts]
    kept, found, first = [], {}, {}
    for index in order:
        twin = first.setdefault(frozenset(sets[index]), index)
        if sets[index] and twin != index:
            found[index] = found.get(twin, (twin, 1.0))
            continue
        near = [(-similarity(sets[index], sets[one]), at, one) for at, one in enumerate(kept)]
        best = min(near, default=(0.0, 0, 0))
        if sets[index] and -best[0] >= threshold:
            found[index] = (best[2], -best[0])
        else:
            kept.append(index)
    return found


few_words = st.lists(
    st.sampled_from("a b c d e f g don't é 床 前 明 ß x_y 3.11 ' \n ok".split(" "))
)


@settings(deadline=None)
@given(st.lists(few_words.map(" ".join), max_size=14), st.integers(1, 4), st.randoms())
def test_the_same_texts_fall_as_when_every_pair_is_compared(texts, n, rng):
    order = list(range(len(texts)))
    rng.shuffle(order)
    for threshold in (0.3, 0.5, 0.75, 0.8, 1.0):
        wanted = brute_force(texts, n, threshold, order)
        found = list(
            find_duplicates(build_shingle_sets(texts, n=n), threshold=threshold, order=order)
        )
        assert {one.index: one.kept for one in found} == {i: k for i, (k, _) in wanted.items()}
        for one in found:
            assert one.similarity == pytest.approx(wanted[one.index][1])


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.integers(1, 3))
def test_words_are_cut_as_elsewhere(one, other, n):
    sets = build_shingle_sets([one, other, one + " " + other], n=n)
    for text, size in zip([one, other, one + " " + other], sets.sizes, strict=True):
        assert size == len(grams(text, n))
    shared = len(np.intersect1d(sets[0], sets[1]))
    assert shared == len(grams(one, n) & grams(other, n))


def crowd(rng, size):
    """Texts that share a long phrase, some of them nearly alike."""
    phrase = " ".join(f"p{number}" for number in range(30))
    texts = []
    for number in range(size):
        own = [f"w{value}" for value in rng.integers(0, 10_000, int(rng.integers(4, 60)))]
        texts.append(f"{phrase} {' '.join(own)}")
        if number % 9 == 0:
            own[0] = "other"
            texts.append(f"{phrase} {' '.join(own)}")
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_a_phrase_that_a_crowd_shares_joins_only_what_is_near(threshold):
    texts = crowd(np.random.default_rng(0), 140)
    wanted = brute_force(texts, 5, threshold, range(len(texts)))
    found = find_near_duplicates(texts, threshold=threshold)
    assert len(wanted) > 10
    assert {one.index: one.kept for one in found} == {i: k for i, (k, _) in wanted.items()}


def test_little_memory_and_files_change_nothing(tmp_path):
    texts = crowd(np.random.default_rng(1), 90)
    wanted = find_near_duplicates(texts, threshold=0.6)
    with (
        mock.patch.object(near_duplicates, "_PART_ENTRIES", 200),
        mock.patch.object(near_duplicates, "_PAIR_PORTION", 500),
        mock.patch.object(shingles, "_BLOCK_CHARACTERS", 700),
    ):
        sets = build_shingle_sets(texts, scratch=tmp_path / "sets")
        for scratch in (None, tmp_path):
            assert list(find_duplicates(sets, threshold=0.6, scratch=scratch)) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["sets"]  # nothing is left behind
    assert (tmp_path / "sets").stat().st_size == 8 * int(sets.sizes.sum())


def test_the_order_of_the_files_does_not_matter_where_the_order_of_keeping_is_the_same():
    texts = crowd(np.random.default_rng(2), 60)
    names = [f"{index:03d}" for index in range(len(texts))]
    kept = set()
    for seed in range(3):
        mixed = np.random.default_rng(seed).permutation(len(texts))
        sets = build_shingle_sets([texts[index] for index in mixed])
        order = np.argsort([names[index] for index in mixed])
        found = list(find_duplicates(sets, threshold=0.6, order=order.tolist()))
        fallen = {one.index for one in found}
        kept.add(tuple(sorted(names[i] for at, i in enumerate(mixed) if at not in fallen)))
    assert len(kept) == 1


def test_a_text_longer_than_a_block_has_the_grams_of_its_words(tmp_path):
    text = " ".join(f"w{number % 5000}'s" for number in range(20_000))
    with mock.patch.object(shingles, "_BLOCK_CHARACTERS", 1000):
        sets = build_shingle_sets(["short one", text, "", "x" * 5000])
    assert sets.sizes.tolist() == [1, len(grams(text, 5)), 0, 1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("ab \n", max_size=8), max_size=8), st.integers(1, 20))
def test_blocks_of_any_size_give_the_same_sets(texts, block):
    wanted = build_shingle_sets(texts)
    with mock.patch.object(shingles, "_BLOCK_CHARACTERS", block):
        found = build_shingle_sets(texts)
    assert all(np.array_equal(one, other) for one, other in itertools.zip_longest(wanted, found))


def test_texts_without_words_are_kept():
    assert find_near_duplicates(["", "", "...", "…"]) == []


@pytest.mark.parametrize("seed", range(4))
def test_second_sets_and_groups_are_compared_as_by_brute_force(seed, tmp_path):
    rng = np.random.default_rng(seed)
    words = [f"w{n}" for n in range(40)]

    def vary(base, changes):
        text = list(base)
        for at in rng.integers(0, len(text), changes):
            text[at] = str(rng.choice(words))
        return " ".join(text)

    bases = [rng.choice(words, 30) for _ in range(3)]
    count = 300
    first = [vary(bases[rng.integers(3)], rng.integers(0, 5)) for _ in range(count)]
    second = [
        "" if rng.random() < 0.2 else vary(bases[rng.integers(3)], rng.integers(0, 5))
        for _ in range(count)
    ]
    groups = rng.integers(0, 2, count)
    sets, also = (build_shingle_sets(texts, n=2) for texts in (first, second))

    def jaccard(some, one, other):
        a, b = set(some[one].tolist()), set(some[other].tolist())
        return len(a & b) / len(a | b) if a | b else 1.0

    found = find_duplicates(sets, threshold=0.7, also=also, groups=groups, scratch=tmp_path)
    kept, wanted = [], {}
    for index in range(count):
        near = [
            (-value, other)
            for other in kept
            if groups[index] == groups[other]
            and (value := min(jaccard(one, index, other) for one in (sets, also))) >= 0.7
        ]
        if near:
            wanted[index] = min(near)
        else:
            kept.append(index)
    assert {one.index: (-one.similarity, one.kept) for one in found} == {
        index: (pytest.approx(value), other) for index, (value, other) in wanted.items()
    }
    assert len(wanted) > 20


@pytest.mark.parametrize("start", ["", "I am sorry but I cannot help with this request because "])
def test_equal_texts_with_other_second_texts_are_not_all_compared(start, monkeypatch):
    rng = np.random.default_rng(0)
    count, compared = 600, []
    words = np.array([f"w{n}" for n in range(900)])
    second = [start + " ".join(rng.choice(words, 30)) for _ in range(count)]
    second[500:] = [f"{text} x" for text in second[:100]]
    sets = build_shingle_sets(["the same question and its one answer"] * count, n=3)
    real = near_duplicates._compute_jaccard

    def count_pairs(sets, left, right):
        compared.append(len(left))
        return real(sets, left, right)

    monkeypatch.setattr(near_duplicates, "_compute_jaccard", count_pairs)
    found = find_duplicates(sets, threshold=0.8, also=build_shingle_sets(second, n=3))
    assert {one.index: one.kept for one in found} == {n + 500: n for n in range(100)}
    assert sum(compared) < 5 * count
