"""Figures of variety are what their definitions say, at one size."""

import gzip
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.evaluate.metrics import ngrams
from stillroom.evaluate.metrics.diversity import (
    compression_ratio,
    distinct_n,
    find_rare_words,
    mean_cosine_distance,
    measure_diversity,
    nearest_neighbor_coverage,
    rare_word_share,
    repeated_ngram_share,
    self_bleu,
    vendi_score,
)

texts = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), max_size=6)


def reference_bleu(text, others):
    """BLEU-4 of the definition: counts clipped by the reference that has most."""
    logs = 0.0
    for n in range(1, 5):
        own = Counter(tuple(text[at : at + n]) for at in range(len(text) - n + 1))
        tables = [Counter(tuple(o[at : at + n]) for at in range(len(o) - n + 1)) for o in others]
        clipped = sum(min(count, max(t[gram] for t in tables)) for gram, count in own.items())
        smooth = int(n > 1)
        value = (clipped + smooth) / max(sum(own.values()) + smooth, 1)
        if not value:
            return 0.0
        logs += math.log(value) / 4
    closest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
    return math.exp(min(0.0, 1 - closest / len(text)) + logs)


def sample(found):
    return ngrams.NGramSample(
        ngrams.NGramTable(ngrams.TokenizedTexts.of(found), 4), range(len(found))
    )


@settings(deadline=None)
@given(texts)
def test_self_bleu_is_bleu_against_all_the_others(found):
    if len(found) < 2:
        assert self_bleu(sample(found)) == 0.0
        return
    wanted = [reference_bleu(text, found[:at] + found[at + 1 :]) for at, text in enumerate(found)]
    assert self_bleu(sample(found)) == pytest.approx(np.mean(wanted))


@settings(deadline=None)
@given(texts)
def test_repeated_is_the_share_of_grams_that_another_text_holds(found):
    grams = [[tuple(text[at : at + 4]) for at in range(len(text) - 3)] for text in found]
    shared = [
        any(gram in other for at, other in enumerate(grams) if at != own)
        for own, ones in enumerate(grams)
        for gram in ones
    ]
    assert repeated_ngram_share(sample(found), 4) == pytest.approx(
        np.mean(shared) if shared else 0.0
    )
    flat = [gram for ones in grams for gram in ones]
    assert distinct_n(sample(found), 4) == pytest.approx(
        len(set(flat)) / len(flat) if flat else 0.0
    )


def test_distinct_and_repeated_count_n_grams():
    found = ["a b c d e".split(), "a b c d x".split()]
    assert distinct_n(sample(found), 1) == 6 / 10
    assert distinct_n(sample(found), 3) == 4 / 6
    assert repeated_ngram_share(sample(found), 4) == 2 / 4
    assert distinct_n(sample([]), 1) == repeated_ngram_share(sample([]), 4) == 0.0


def test_vendi_counts_different_vectors():
    rows = np.eye(6, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    assert vendi_score(rows) == pytest.approx(3.0)
    rng = np.random.default_rng(0)
    many = rng.normal(size=(40, 5)).astype(np.float32)
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(many.astype(float) @ many.T / 40)
    values = values[values > 1e-12]
    assert vendi_score(many) == pytest.approx(math.exp(-(values * np.log(values)).sum()), rel=1e-5)
    assert vendi_score(many[:0]) == 0.0


def test_coverage_is_full_for_more_of_the_same_and_falls_where_a_part_is_missing():
    rng = np.random.default_rng(0)

    def draw(count, centers):
        rows = rng.normal(size=(count, 8)) * 0.3 + np.eye(8)[rng.choice(centers, count)]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    reference = draw(400, 4)
    assert nearest_neighbor_coverage(draw(400, 4), reference).mean() == pytest.approx(
        1 - 0.5**5, abs=0.03
    )
    assert nearest_neighbor_coverage(draw(400, 1), reference).mean() < 0.6
    assert not nearest_neighbor_coverage(reference[:0], reference).any()


def test_the_tail_weighs_as_much_in_more_of_the_same():
    rng = np.random.default_rng(0)
    words = np.array([f"w{at}" for at in range(3000)])
    weights = 1 / np.arange(1, 3001)
    weights /= weights.sum()

    def draw(count):
        return [" ".join(rng.choice(words, 50, p=weights)) for _ in range(count)]

    tail, mass = find_rare_words(draw(400))
    assert "w0" not in tail
    assert 0.02 < mass < 0.1
    again = rare_word_share([text.split() for text in draw(400)], tail)
    assert again / mass == pytest.approx(1.0, abs=0.15)
    assert rare_word_share([["w0"] * 50], tail) == rare_word_share([], tail) == 0.0


def test_repetition_compresses_and_order_within_the_window_does_not_matter_much():
    varied = [
        " ".join(f"w{(at * 7919 + n * 104729) % 9973}" for n in range(60)) for at in range(40)
    ]
    assert compression_ratio(varied[:1] * 40) > 5 * compression_ratio(varied)
    far = [*varied, *(f"{'x' * 40_000}{at}" for at in range(2)), *varied]
    assert compression_ratio(far) > 1.8 * compression_ratio(varied)


def zipf(count, seed, size=60, vocabulary=3000):
    """Return texts of words whose frequency falls with their rank."""
    rng = random.Random(seed)
    names = [
        "".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(vocabulary)
    ]
    weights = [1 / rank for rank in range(1, vocabulary + 1)]
    return [" ".join(rng.choices(names, weights, k=size)) for _ in range(count)]


def test_compression_is_the_papers_ratio_within_gzips_window():
    """Shaib et al. take bytes over gzipped bytes; of less than 32 kB both see all of it."""
    varied = zipf(40, 0)
    for share in (0.0, 0.25, 0.5, 0.75):
        cut = round(share * len(varied))
        found = varied[: len(varied) - cut] + varied[:1] * cut
        raw = "\n".join(found).encode()
        assert len(raw) < 32_000
        assert compression_ratio(found) == pytest.approx(
            len(raw) / len(gzip.compress(raw)), rel=0.12
        )
    assert compression_ratio(varied * 4) > 3 * compression_ratio(
        varied
    )  # where gzip sees a part only
    assert compression_ratio([]) == 0.0


def reference_tail(cut):
    """Words of one half that are surely of the tail, those that may be, and the room for all."""
    counts = Counter(word for text in cut[::2] for word in text)
    room = 0.1 * sum(counts.values())
    sure = set()
    for often in sorted(set(counts.values())):
        border = {word for word in counts if counts[word] == often}
        if sum(counts[word] for word in sure | border) > room:
            return sure, border, room
        sure |= border
    raise AssertionError("the tail is all of it")


@pytest.mark.parametrize("size", [20, 60, 400])
def test_the_tail_is_the_rarest_words_whatever_their_letters(size):
    cut = [text.split() for text in zipf(size, size)]
    tail, mass = find_rare_words([" ".join(words) for words in cut])
    sure, border, room = reference_tail(cut)
    counts = Counter(word for text in cut[::2] for word in text)
    assert sure <= tail <= sure | border
    held = sum(counts[word] for word in tail)
    assert room - max(counts[word] for word in tail) < held <= room
    rest = [word for text in cut[1::2] for word in text]
    assert mass == pytest.approx(sum(word in tail for word in rest) / len(rest))
    # of those at the border, the ones taken are spread over the alphabet as the others are
    taken, left = sorted(border & tail), sorted(border - tail)
    if len(taken) > 50 and len(left) > 50:
        place = {word: at / len(border) for at, word in enumerate(sorted(border))}
        assert np.mean([place[word] for word in taken]) == pytest.approx(0.5, abs=0.15)


def test_figures_are_of_one_budget_whatever_the_size():
    rng = np.random.default_rng(0)
    words = [f"w{at}" for at in range(3000)]
    many = [" ".join(rng.choice(words, 30)) for _ in range(800)]
    large = measure_diversity(many, budget=1500)
    small = measure_diversity(many[:120], budget=1500)
    assert large["distinct_1"].value == pytest.approx(small["distinct_1"].value, rel=0.03)
    assert large["distinct_1"].low <= large["distinct_1"].value <= large["distinct_1"].high
    assert measure_diversity(many[:50], budget=1500)["distinct_1"].note
    assert not large["distinct_1"].note


def test_spread_is_the_mean_distance_of_two_texts():
    same = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (5, 1))
    assert mean_cosine_distance(same) == pytest.approx(0.0)
    apart = np.eye(4, dtype=np.float32)
    assert mean_cosine_distance(apart) == pytest.approx(1.0)
    assert mean_cosine_distance(apart[:1]) == 0.0


def test_n_grams_of_many_words_are_counted_as_those_of_few(monkeypatch):
    """Where one number does not hold all words of an n-gram, n-grams are numbered anew."""
    cut = [text.split() for text in zipf(60, 3, vocabulary=400)]
    packed = [
        self_bleu(sample(cut)),
        repeated_ngram_share(sample(cut), 3),
        distinct_n(sample(cut), 4),
    ]
    monkeypatch.setattr(ngrams, "_MAX_INT64", 200_000)
    assert [
        self_bleu(sample(cut)),
        repeated_ngram_share(sample(cut), 3),
        distinct_n(sample(cut), 4),
    ] == packed
