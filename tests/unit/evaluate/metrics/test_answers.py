"""Measures of answers against their definitions, and judges that fail."""

import json
import math
import random

import numpy as np
import pytest

from stillroom.errors import BackendError, DataError
from stillroom.evaluate.judges import BinaryJudge, JudgeResult, JudgeStats, choose_judge_mode
from stillroom.evaluate.metrics.agreement import (
    PlattScaler,
    measure_judge_agreement,
    prediction_powered_mean,
)
from stillroom.evaluate.metrics.answers import (
    CitedStatement,
    abstention_scores,
    best_f1,
    citation_scores,
    contains_answer,
    context_precision,
    faithfulness,
    noise_sensitivity,
    quote_exactness,
    summarize_shares,
)
from stillroom.models.backends.scripted import ScriptedModel


def says(statement, texts):
    """Return whether every word of the statement stands in the texts together."""
    return set(statement.split()) <= set(" ".join(texts).split())


def test_citations_as_the_paper_scores_them():
    statements = [
        CitedStatement("a b", ("a x", "b y")),  # needs both
        CitedStatement("c", ("c", "z")),  # the second is idle
        CitedStatement("d", ("e",)),  # wrong
        CitedStatement("f"),  # none
    ]
    recall, precision = citation_scores(statements, says)
    assert recall == 2 / 4
    assert precision == 3 / 5
    assert citation_scores([], says) == (None, None)
    assert citation_scores([CitedStatement("a")], says) == (0.0, None)
    assert citation_scores(statements, lambda one, texts: None) == (None, None)


def test_faithfulness_counts_supported_statements():
    assert faithfulness(["a", "b", "q"], ["a b"], says) == pytest.approx(2 / 3)
    assert faithfulness([], ["a"], says) is None
    assert faithfulness(["a"], [], says) == 0.0


def test_noise_is_what_was_shown_and_is_not_true():
    assert noise_sensitivity(["a", "b", "c"], "a", ["a b"], says) == pytest.approx(1 / 3)


def test_context_precision_is_that_of_its_formula():
    rng = random.Random(0)
    for _ in range(200):
        relevant = [rng.random() < 0.4 for _ in range(rng.randint(0, 12))]
        total = sum(sum(relevant[: at + 1]) / (at + 1) for at, one in enumerate(relevant) if one)
        expected = total / sum(relevant) if any(relevant) else 0.0
        assert context_precision(relevant) == pytest.approx(expected)


def test_a_quotation_must_stand_there_word_for_word():
    shown = ["The cat sleeps\nsixteen hours a day."]
    assert quote_exactness('It says "The cat sleeps sixteen hours".', shown) == 1.0
    assert quote_exactness('It says "the cat sleeps twelve hours".', shown) == 0.0
    assert quote_exactness("“cat sleeps sixteen hours” and “dogs bark all night”", shown) == 0.5
    assert quote_exactness('The "cat" sleeps.', shown) is None  # a word is no quotation


def test_answers_are_held_word_for_word():
    assert contains_answer("It has 2.1 million people.", ["2.1 million"]) == 1.0
    assert contains_answer("It has 12.1 million people.", ["2.1 million"]) == 0.0
    assert contains_answer("anything", ["..."]) == 0.0
    assert best_f1("the cat", ["dog", "cat"]) == 1.0


def test_a_share_says_on_how_many_it_stands():
    metric = summarize_shares({"a": 1.0, "b": None, "c": 0.0}, "x")
    assert (metric.value, metric.n) == (0.5, 2)
    assert metric.note == "measured on 2 of 3"
    assert math.isnan(summarize_shares({"a": None}, "x").value)


def test_abstention_precision_recall_and_f1():
    should, did = [True, True, False, False, True], [True, False, True, False, True]
    precision, recall, f1 = abstention_scores(should, did, "w")
    assert precision.value == pytest.approx(2 / 3)
    assert recall.value == pytest.approx(2 / 3)
    assert f1.value == pytest.approx(2 / 3)
    never = abstention_scores(should, [False] * 5, "w")
    assert math.isnan(never[0].value)
    assert never[1].value == 0.0


def test_a_judge_under_a_schema_asks_again_and_counts_what_fails():
    model = ScriptedModel(["what?", '{"verdict": "yes"}', "1", "2", '{"verdict": "maybe"}'])
    judge = BinaryJudge(model, way="json", retries=2)
    verdicts = [judge.ask("a"), judge.ask("b")]
    assert [one.value for one in verdicts] == [1.0, None]
    assert [one.retries for one in verdicts] == [1, 2]
    counts = JudgeStats.of(verdicts)
    assert (counts.asked, counts.retried, counts.failed) == (2, 3, 1)
    assert all(prompt.schema for prompt in model.asked)


def test_a_judge_by_probabilities_always_has_a_verdict():
    model = ScriptedModel({"wet": "Yes", "*": "No"})
    judge = BinaryJudge(model)
    assert judge.ask("Is water wet?").is_yes is True
    assert judge.ask("Is water dry?").is_yes is False
    assert JudgeResult(None).is_yes is None
    assert choose_judge_mode(model) == "logprob"

    class Silent(ScriptedModel):
        def score(self, prompts, completions):
            raise BackendError("cannot", code="backend.no-score")

    assert choose_judge_mode(Silent({"*": "no"})) == "json"


def test_agreement_is_cohens():
    said = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    labels = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    accuracy, kappa = measure_judge_agreement(said, labels)
    assert accuracy.value == pytest.approx(0.7)
    assert kappa.value == pytest.approx(0.4)
    assert kappa.low < 0.4 < kappa.high
    with pytest.raises(DataError) as caught:
        measure_judge_agreement([True], [])
    assert caught.value.code == "metric.unpaired"


def test_platts_curve_finds_the_curve_that_labels_came_from():
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.02, 0.98, 4000)
    odds = np.log(chances / (1 - chances))
    truth = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    scale = PlattScaler.fit(list(chances), list(truth))
    assert scale.slope == pytest.approx(0.5, abs=0.1)
    assert scale.intercept == pytest.approx(-1, abs=0.12)
    assert scale.apply(scale.threshold) == pytest.approx(0.5)
    separated = PlattScaler.fit([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert math.isfinite(separated.slope)
    with pytest.raises(DataError) as caught:
        PlattScaler.fit([0.1, 0.9], [True, True])
    assert caught.value.code == "metric.one-label"


def test_a_corrected_mean_covers_the_truth_though_the_judge_is_biased():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        truth = rng.random(660) < 0.4
        judged = np.where(rng.random(660) < 0.3, 1.0, truth)  # says yes too often
        metric = prediction_powered_mean(list(judged[60:]), list(judged[:60]), list(truth[:60]))
        covered += metric.low <= 0.4 <= metric.high
    assert covered >= 180
    with pytest.raises(DataError, match="verdicts"):
        prediction_powered_mean([1.0], [1.0], [True])


def test_verdicts_are_plain_json():
    assert json.dumps(JudgeStats.of([JudgeResult(1.0, 0, 3, 1)]).to_json())
