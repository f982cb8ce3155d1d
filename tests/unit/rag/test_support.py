import pytest

from stillroom.rag.support import SUPPORT_THRESHOLD, Evidence

PASSAGES = [
    "Paris is the capital of France. It has 2.1 million inhabitants. The Seine runs through it.",
    "A dog barks at strangers. Dogs guard the house at night.",
]


@pytest.fixture
def evidence(index):
    return Evidence(PASSAGES, index.analyzer, index.lexicon)


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("The capital of France is Paris.", 1),
        ("Paris has 2.1 million inhabitants.", 1),
        ("1. Dogs bark at strangers.", 2),
        ("Dogs guard houses at night.", 2),
    ],
)
def test_what_a_passage_says_is_supported(evidence, sentence, number):
    support = evidence.find(sentence)
    assert support.number == number
    assert support.score >= SUPPORT_THRESHOLD


@pytest.mark.parametrize(
    "sentence",
    [
        "Paris has 3.1 million inhabitants.",
        "Paris is not the capital of France.",
        "Dogs don't guard the house at night.",
        "Berlin has a famous zoo.",
        "The mitochondria is the powerhouse of the cell.",
    ],
)
def test_other_numbers_negations_and_matters_are_not(evidence, sentence):
    assert evidence.find(sentence).score < SUPPORT_THRESHOLD


def test_a_sentence_without_words_claims_nothing(evidence):
    assert not evidence.has_claim("...")
    assert not evidence.has_claim("1.")
    assert evidence.has_claim("Dogs bark.")
