"""Figures of variety are those of a sample of texts, at one number of words."""

import random

from stillroom.evaluate.metrics.diversity import find_rare_words, measure_diversity
from stillroom.records import Message, Origin, Record
from stillroom.synth.pipeline.statistics import (
    SAMPLE_SIZE,
    RecordStats,
    compare_diversity,
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


def test_figures_are_those_of_the_texts_at_one_budget():
    seeds, made = texts(400, 1), texts(900, 2)
    found = compare_diversity(tally(made).sample, seeds)
    budget = min(sum(len(split_words(text)) for text in side) // 2 for side in (seeds, made))
    tail, mass = find_rare_words(seeds)
    told = {"tail": tail, "tail_mass": mass, "draws": 10, "budget": found.budget}
    assert found.budget == min(budget, 5000)
    assert found.sides["generated"] == measure_diversity(made, **told)
    whole = measure_diversity(seeds, **told)
    half = measure_diversity(seeds[1::2], **told)["tail"]
    assert found.sides["seeds"] == {**whole, "tail": half}


def test_no_more_texts_are_measured_than_a_sample():
    many = texts(3 * SAMPLE_SIZE, 3)
    held = tally(many).sample
    assert len(held) == SAMPLE_SIZE
    assert set(held) < set(many)
    found = compare_diversity(held, many)
    assert {metric.n for side in found.sides.values() for metric in side.values()} == {
        SAMPLE_SIZE,
        SAMPLE_SIZE // 2,
    }


def test_nothing_is_measured_of_too_few_words():
    assert compare_diversity(tally(texts(200, 1)).sample, ["one two"]) is None
    assert compare_diversity([], []) is None
