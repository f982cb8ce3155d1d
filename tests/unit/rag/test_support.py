import pytest

from stillroom.rag.support import SUPPORT_THRESHOLD, Evidence, names_of

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
        "The capital of France is Berlin.",
        "Paris is the capital of Italy.",
        "The Rhine runs through Paris.",
    ],
)
def test_other_numbers_negations_and_matters_are_not(evidence, sentence):
    assert evidence.find(sentence).score < SUPPORT_THRESHOLD


def test_a_sentence_without_words_claims_nothing(evidence):
    assert not evidence.has_claim("...")
    assert not evidence.has_claim("1.")
    assert evidence.has_claim("Dogs bark.")


def test_a_negation_counts_where_the_words_are(index):
    text = "The flag does not change the port. The flag changes the host. It is not needed."
    evidence = Evidence([text], index.analyzer, index.lexicon)
    assert evidence.measure("The flag changes the host.", 1) == 1
    assert evidence.measure("The flag does not change the port.", 1) == 1
    assert evidence.measure("The flag changes the port.", 1) == 0
    assert evidence.measure("The flag does not change the host.", 1) == 0


def test_names_are_words_with_a_capital_within_a_sentence():
    text = 'Paris lies in France. "Rome" does not, says Jean-Luc; I know. * Bern too.'
    assert names_of(text) == ["France", "Jean-Luc"]


def test_where_nouns_have_capitals_they_are_no_names(index):
    text = "Die Katze schläft am Tag auf dem Sofa im Haus. Der Hund bellt."
    evidence = Evidence([text], index.analyzer, index.lexicon)
    assert evidence.measure("Die Katze schläft am Tag auf der Couch im Haus.", 1) > 0


class Common:
    """A large index where one name is in every second passage."""

    def idf(self, term):
        return {"\0": 6.0, "acm": 0.7}.get(term, 3.0)


def test_what_a_whole_index_is_about_need_not_be_named_again(index):
    text = "The press runs at night and never by day, since power is cheap then."
    evidence = Evidence([text], index.analyzer, Common())
    assert evidence.measure("The press of Acme runs at night.", 1) > SUPPORT_THRESHOLD
    assert evidence.measure("The press of Brill runs at night.", 1) == 0


def test_what_a_passage_stands_under_helps_but_never_carries(index):
    evidence = Evidence(["Due: 821.14.", "Dogs bark."], index.analyzer, index.lexicon)
    said = "The retail purchase receipt is due: 821.14."
    assert evidence.find(said).score < SUPPORT_THRESHOLD
    evidence.place(["Retail purchase receipt", "Retail purchase receipt of 821.14"])
    assert evidence.find(said).number == 1
    assert evidence.find(said).score >= SUPPORT_THRESHOLD
    assert evidence.measure("The retail purchase receipt is due: 999.99.", 1) == 0
    assert evidence.measure(said, 2) == 0
