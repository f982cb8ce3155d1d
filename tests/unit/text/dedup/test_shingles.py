import numpy as np
import pytest

from stillroom.text import (
    MinHasher,
    find_near_duplicates,
    hash_shingles,
    jaccard_similarity,
    ngram_overlap,
)


def make_text(rng, size=80):
    return " ".join(f"w{number}" for number in rng.integers(0, 5000, size))


def test_jaccard_is_that_of_word_five_grams():
    one, other = "a b c d e f g", "a b c d e f x"
    assert jaccard_similarity(hash_shingles(one), hash_shingles(other)) == pytest.approx(2 / 4)
    assert jaccard_similarity(hash_shingles(one), hash_shingles("A, b; c. d e F g!")) == 1.0
    assert jaccard_similarity(hash_shingles(""), hash_shingles("")) == 0.0


def test_short_texts_are_equal_only_when_they_are_the_same():
    assert jaccard_similarity(hash_shingles("yes"), hash_shingles("no")) == 0.0
    assert jaccard_similarity(hash_shingles("yes"), hash_shingles("Yes.")) == 1.0
    assert find_near_duplicates(["yes", "no", "maybe so", "", ""]) == []


def test_signatures_estimate_the_exact_similarity():
    rng = np.random.default_rng(1)
    hasher = MinHasher(num_bands=64, rows=8)
    for share in (0.2, 0.5, 0.8, 0.95):
        text = make_text(rng, 400).split()
        changed = list(text)
        for at in rng.choice(400, int(400 * (1 - share) / 5), replace=False):
            changed[at] = "other"
        pair = [" ".join(text), " ".join(changed)]
        signed = hasher.sign(pair)
        exact = jaccard_similarity(*map(hasher.shingles, pair))
        assert np.mean(signed[0] == signed[1]) == pytest.approx(exact, abs=0.08)


def test_planted_duplicates_are_found_and_each_is_near_what_is_kept():
    rng = np.random.default_rng(2)
    texts = [make_text(rng) for _ in range(200)]
    planted = []
    for number in range(0, 200, 4):
        copy = texts[number].split()
        copy[40] = "changed"
        planted.append(" ".join(copy))
    found = find_near_duplicates(texts + planted, threshold=0.8)
    assert len(found) == 50
    for one in found:
        assert one.index >= 200
        assert one.kept == (one.index - 200) * 4
        assert one.similarity >= 0.8


def test_chains_do_not_drag_far_texts_together():
    base = [f"w{number}" for number in range(100)]
    chain = []
    for step in range(12):
        chain.append(" ".join(base))
        base[step * 8] = f"new{step}"
    found = find_near_duplicates(chain, threshold=0.85)
    kept = set(range(12)) - {one.index for one in found}
    assert len(kept) >= 4
    for one in found:
        assert (
            jaccard_similarity(hash_shingles(chain[one.index]), hash_shingles(chain[one.kept]))
            >= 0.85
        )


def test_the_best_score_is_kept_then_the_first_whatever_the_order():
    text = "one two three four five six seven eight nine ten"
    assert [one.index for one in find_near_duplicates([text] * 3)] == [1, 2]
    found = find_near_duplicates([text] * 3, scores=[0.1, 0.9, 0.9])
    assert [(one.index, one.kept) for one in found] == [(0, 1), (2, 1)]


def test_signatures_do_not_depend_on_the_texts_beside_them():
    rng = np.random.default_rng(3)
    texts = [make_text(rng, int(size)) for size in rng.integers(1, 900, 60)]
    together = MinHasher().sign(texts)
    for index in (0, 17, 59):
        assert np.array_equal(MinHasher().sign([texts[index]])[0], together[index])


def test_scripts_without_spaces_are_compared_by_character():
    poem = "床前明月光疑是地上霜举头望明月低头思故乡"
    assert jaccard_similarity(hash_shingles(poem), hash_shingles(poem[:-1] + "土")) > 0.8
    assert len(find_near_duplicates([poem, poem[:-1] + "土", "春眠不觉晓处处闻啼鸟"])) == 1


def test_overlap_is_the_share_of_the_reference_that_the_text_contains():
    reference = " ".join(f"w{number}" for number in range(26))
    assert ngram_overlap(f"before {reference} after", reference) == 1.0
    assert ngram_overlap("nothing of it", reference) == 0.0
    assert ngram_overlap("What is the capital of France? Paris.", "capital of France") == 1.0
    assert ngram_overlap("France", "") == 0.0
    changed = reference.replace("w13", "x")
    assert ngram_overlap(changed, reference, n=5) == pytest.approx(17 / 22)
