"""Test items in other words, told by a small embedder that is made for the test."""

import json

import numpy as np
import pytest
from tests.unit.synth.filters.test_filters import make_record

from stillroom.errors import BackendError
from stillroom.records import Message, Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers
from stillroom.synth.filters.reworded import Reworded
from stillroom.synth.interfaces import FilterContext
from stillroom.synth.model_pool import ModelPool

SENSES = {"glands": 0, "abdomen": 0, "wax": 1, "beeswax": 1, "queen": 2, "mother": 2, "dies": 3}
SENSES |= {"starves": 3, "bread": 4, "dough": 4}
ITEM = "Where do worker bees produce wax, in which glands?"


class ByWords:
    """Knows which words mean the same."""

    fingerprint, dimensions, max_tokens, truncated = "by words", 6, 64, 0

    def embed(self, texts, *, kind):
        rows = np.full((len(texts), 6), 0.01, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().replace("?", "").replace(",", "").split():
                if word in SENSES:
                    row[SENSES[word]] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def begin(tmp_path, embedder=None, **settings):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({"question": ITEM, "answer": "Below."}) + "\n")
    models = ModelPool(models={("embedder", "e"): embedder or ByWords()})
    held_out = [make_record("When the queen dies, who starves?", "The hive starves.")]
    chosen = Reworded(embedder="e", against=(str(path),), **settings)
    return chosen.start(FilterContext(held_out=held_out, models=models))


def test_items_of_files_and_of_the_held_out_side_are_found_in_other_words(tmp_path):
    meter = begin(tmp_path)
    told = make_record("From what part below the abdomen comes beeswax?", "From the one below.")
    verdict = meter.judge(told)
    assert (verdict.reason, verdict.against) == ("a test item in other words", ITEM)
    assert verdict.score >= verdict.limit == 0.86
    mother = make_record("What follows for the hive if its mother dies?", "It starves.")
    assert meter.judge(mother).against == "When the queen dies, who starves?"
    assert meter.judge(make_record("How does bread rise?", "The dough rises.")).keep


def test_an_answer_that_tells_counts_and_one_that_anybody_gives_does_not(tmp_path):
    asked = ("Bees: what do they build with?", "They build with wax.")
    meter = begin(tmp_path)
    plain = meter.judge(make_record(*asked)).score
    same = meter.judge(make_record(*asked, final_answer="Below!")).score
    assert same >= plain + 0.11  # and another answer speaks against it
    assert meter.judge(make_record(*asked, final_answer="Above")).score == plain
    many = BenchmarkAnswers(
        ["7", "7.0", "", "Yes", "(B)", "12 bees", "3/4", *"abcdefghijklmnopqrst"]
    )
    for said, found in (
        ("The answer is 7", set()),  # two of 27 have it
        ("Yes", set()),
        ("(B)", set()),
        ("12 bees.", {5}),
        ("0.75", {6}),
        ("", set()),
    ):
        assert many.find_same(Record((), {"answer": said})) == found


def test_a_long_text_is_looked_through_in_pieces(tmp_path):
    filler = "Nothing is told here of what anybody might ask about in a test. " * 12
    text = f"{filler}Which abdomen of bees gives us beeswax? {filler}"
    assert not begin(tmp_path).judge(Record((Message("assistant", text),))).keep
    stated = text.replace("Which abdomen", "The abdomen").replace("?", ".")
    assert begin(tmp_path).judge(Record((Message("assistant", stated),))).keep


def test_without_items_nothing_falls_and_a_failing_embedder_calls_nothing_clean(tmp_path):
    models = ModelPool(models={("embedder", "e"): ByWords()})
    assert Reworded(embedder="e").start(FilterContext(models=models)).judge(make_record()).keep

    class Failing(ByWords):
        def embed(self, texts, *, kind):
            if len(texts) != 2:  # the items; records have other numbers of messages
                raise BackendError("it is gone", code="backend.down")
            return super().embed(texts, kind=kind)

    meter = begin(tmp_path, Failing())
    with pytest.raises(BackendError):
        meter.judge(Record((Message("assistant", "Wax."),)))
