"""Figures of variety do not depend on when they were taken, nor on how the texts came."""

import random

import pytest

from stillroom.evaluate.metrics.diversity import find_rare_words, measure_diversity
from stillroom.records import Message, Origin, Record
from stillroom.synth.pipeline import statistics
from stillroom.synth.pipeline.statistics import (
    SAMPLE_SIZE,
    DiversityComparison,
    RecordStats,
    TextSample,
)
from stillroom.text.unicode import split_words


def texts(count, seed, size=20):
    rng = random.Random(seed)
    names = [f"w{at}" for at in range(800)]
    return [" ".join(rng.choices(names, k=rng.randint(1, size))) + f" {n}." for n in range(count)]


def tally(made):
    return RecordStats.of(
        Record((Message("assistant", one),), {}, Origin("synthetic")) for one in made
    )


def compare(seeds, made, *, is_ahead, monkeypatch):
    monkeypatch.setattr(statistics, "_LOOKAHEAD_WORDS", 1 if is_ahead else 10**9)
    comparison = DiversityComparison(seeds)
    sample = tally(made).sample
    comparison.look_ahead(sample)
    assert (comparison._ahead is not None) == (is_ahead and bool(seeds))
    return comparison.measure(sample)


@pytest.mark.parametrize(
    ("seeds", "made"),
    [
        (texts(300, 1), texts(1500, 2)),  # more is made than is sampled
        (texts(1300, 3), texts(700, 4)),
        (texts(900, 5), texts(60, 6)),  # the budget follows from what is made
        (["few"], texts(200, 7)),
        ([], texts(200, 8)),
        (texts(50, 9), texts(50, 9)[:1]),
    ],
)
def test_what_is_measured_ahead_is_what_is_measured_at_the_end(seeds, made, monkeypatch):
    ahead = compare(seeds, made, is_ahead=True, monkeypatch=monkeypatch)
    assert ahead == compare(seeds, made, is_ahead=False, monkeypatch=monkeypatch)


def test_what_was_begun_for_one_sample_is_not_given_for_another():
    seeds = texts(300, 1)
    one, other = tally(texts(300, 2)).sample, tally(texts(300, 3)).sample
    comparison = DiversityComparison(seeds)
    comparison.start(one)
    assert comparison.measure(other) == DiversityComparison(seeds).measure(other)
    assert comparison.measure(one) == DiversityComparison(seeds).measure(one)
    assert comparison.measure(one) != comparison.measure(other)


def test_figures_are_those_of_the_texts_cut_anew(monkeypatch):
    seeds, made = texts(400, 1), texts(900, 2)
    found = compare(seeds, made, is_ahead=True, monkeypatch=monkeypatch)
    budget = min(sum(len(split_words(text)) for text in side) // 2 for side in (seeds, made))
    tail, mass = find_rare_words(seeds)
    told = {"tail": tail, "tail_mass": mass, "draws": 10, "budget": found.budget}
    assert found.budget == min(budget, 5000)
    assert found.sides["made"] == measure_diversity(made, **told)
    whole = measure_diversity(seeds, **told)
    half = measure_diversity(seeds[1::2], **told, only=frozenset({"tail"}))
    assert found.sides["started from"] == whole | half


def test_a_sample_knows_the_words_of_what_it_holds():
    many = texts(3 * SAMPLE_SIZE, 3)
    sample = TextSample.of(many)
    held, cut = sample.get_sample()
    assert len(held) == SAMPLE_SIZE
    assert set(held) < set(many)
    known = cut.lexicon.words()
    assert [[known[at] for at in one] for one in cut.texts] == [split_words(text) for text in held]
    assert sample.words == sum(len(split_words(text)) for text in held) == cut.count()


def test_nothing_is_measured_of_too_few_words():
    assert DiversityComparison(["one two"]).measure(tally(texts(200, 1)).sample) is None
    assert DiversityComparison().measure(TextSample()) is None
