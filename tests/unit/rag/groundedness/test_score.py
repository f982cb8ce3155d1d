import pytest

from stillroom.rag.groundedness.claims import extract_names
from stillroom.rag.groundedness.score import SUPPORT_THRESHOLD, SourceTexts

PASSAGES = [
    "Paris is the capital of France. It has 2.1 million inhabitants. The Seine runs through it.",
    "A dog barks at strangers. Dogs guard the house at night.",
]


@pytest.fixture
def evidence(index):
    return SourceTexts(PASSAGES, index.analyzer, index.lexicon)


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
    evidence = SourceTexts([text], index.analyzer, index.lexicon)
    assert evidence.measure("The flag changes the host.", 1) == 1
    assert evidence.measure("The flag does not change the port.", 1) == 1
    assert evidence.measure("The flag changes the port.", 1) == 0
    assert evidence.measure("The flag does not change the host.", 1) == 0


def test_names_are_words_with_a_capital_within_a_sentence():
    text = 'Paris lies in France. "Rome" does not, says Jean-Luc; I know. * Bern too.'
    assert extract_names(text) == ["France", "Jean-Luc"]


def test_where_nouns_have_capitals_they_are_no_names(index):
    text = "Die Katze schläft am Tag auf dem Sofa im Haus. Der Hund bellt."
    evidence = SourceTexts([text], index.analyzer, index.lexicon)
    assert evidence.measure("Die Katze schläft am Tag auf der Couch im Haus.", 1) > 0


class Common:
    """A large index where one name is in every second passage."""

    def idf(self, term):
        return {"\0": 6.0, "acm": 0.7}.get(term, 3.0)


def test_what_a_whole_index_is_about_need_not_be_named_again(index):
    text = "The press runs at night and never by day, since power is cheap then."
    evidence = SourceTexts([text], index.analyzer, Common())
    assert evidence.measure("The press of Acme runs at night.", 1) > SUPPORT_THRESHOLD
    assert evidence.measure("The press of Brill runs at night.", 1) == 0


def test_what_a_passage_stands_under_helps_but_never_carries(index):
    evidence = SourceTexts(["Due: 821.14.", "Dogs bark."], index.analyzer, index.lexicon)
    said = "The retail purchase receipt is due: 821.14."
    assert evidence.find(said).score < SUPPORT_THRESHOLD
    evidence.set_headings(["Retail purchase receipt", "Retail purchase receipt of 821.14"])
    assert evidence.find(said).number == 1
    assert evidence.find(said).score >= SUPPORT_THRESHOLD
    assert evidence.measure("The retail purchase receipt is due: 999.99.", 1) == 0
    assert evidence.measure(said, 2) == 0


STATE = (
    "The Broncos defeated the Panthers 24 to 10. Peyton Manning led the Broncos in passing, while"
    " Cam Newton led the Panthers in rushing. The game was played in Santa Clara in 2016. Ward"
    " recovered two fumbles before the break."
)


@pytest.mark.parametrize(
    "sentence",
    [
        "The Panthers defeated the Broncos 24 to 10.",
        "The Broncos defeated the Panthers 10 to 24.",
        "Cam Newton led the Broncos in passing.",
        "The game was played in Santa Clara in 24.",
        "Ward recovered two fumbles after the break.",
        "Ward recovered ten fumbles before the break.",
        "The Broncos recovered two fumbles before the break.",
        "The game was recovered in Santa Clara in 2016.",
        "Peyton Manning led the Bears in passing.",
        "Łukasz led the Panthers in rushing, as did Émile.",
    ],
)
def test_a_sentence_made_of_a_passages_words_may_say_something_else(index, sentence):
    evidence = SourceTexts([STATE], index.analyzer, index.lexicon)
    assert evidence.find(sentence).score < SUPPORT_THRESHOLD


@pytest.mark.parametrize(
    "sentence",
    [
        "In 2016 the game was played in Santa Clara.",
        "The Panthers were defeated by the Broncos 24 to 10.",
        "Cam Newton led the Panthers in rushing.",
        "Ward recovered 2 fumbles before the break.",
        "Ward recovered two fumbles.",
        "Peyton Manning led in passing.",
    ],
)
def test_what_is_told_in_another_order_or_in_part_is_supported(index, sentence):
    evidence = SourceTexts([STATE], index.analyzer, index.lexicon)
    assert evidence.find(sentence).score >= SUPPORT_THRESHOLD


def test_a_passage_of_many_names_has_its_names_looked_at(index):
    text = (
        "Laureates: Paul Samuelson, Milton Friedman, George Stigler, James Tobin. Paul Samuelson"
        " was the first American to win the Nobel Memorial Prize in Economic Sciences."
    )
    evidence = SourceTexts([text], index.analyzer, index.lexicon)
    said = "The first American to win the Nobel Memorial Prize in Economic Sciences was {}."
    assert evidence.measure(said.format("Nikola Tesla"), 1) == 0
    assert evidence.measure(said.format("Paul Samuelson"), 1) >= SUPPORT_THRESHOLD


def test_what_was_asked_is_no_answer_to_it(index):
    evidence = SourceTexts(PASSAGES, index.analyzer, index.lexicon)
    evidence.set_question("What is the capital of France?")
    assert not evidence.has_claim("The capital of France is the capital of France.")
    assert evidence.is_restated("It is the capital of France.")
    assert evidence.has_claim("The capital of France is Paris.")
    assert evidence.find("The capital of France is a dog.").score < SUPPORT_THRESHOLD
    evidence.set_question("Is Paris the capital of France?")
    assert evidence.find("Paris is the capital of France.").score >= SUPPORT_THRESHOLD
    assert evidence.has_claim("Paris is the capital of France.")


def test_passages_read_together_are_held_to_their_own_words(index):
    evidence = SourceTexts([STATE, PASSAGES[0]], index.analyzer, index.lexicon)
    assert evidence.measure_together("The Panthers defeated the Broncos 24 to 10.", [1, 2]) == 0
    assert evidence.measure_together("The Broncos defeated the Panthers 24 to 10.", [1, 2]) > 0.6


@pytest.mark.parametrize(
    ("passage", "question", "right", "wrong"),
    [
        (
            "In case of water damage there is no warranty. Repairs are paid by the customer.",
            "What warranty is there in case of water damage?",
            "There is no warranty in case of water damage.",
            "There is a warranty in case of water damage.",
        ),
        (
            "Carrots contain vitamin A. They are orange.",
            "Which vitamin do carrots contain?",
            "Carrots contain vitamin A.",
            "A vitamin carrots contain.",
        ),
        (
            "Carrots contain vitamin B. A carrot is orange.",
            "Which vitamin do carrots contain?",
            "Carrots contain vitamin B.",
            "Carrots contain vitamin A.",
        ),
        (
            "The department of help is IT. It is on the second floor.",
            "Which is the department of help?",
            "The department of help is IT.",
            "It is the department of help.",
        ),
        (
            "The tablets are taken after meals.",
            "When are the tablets taken at meals?",
            "The tablets are taken after meals.",
            "The tablets are taken before meals.",
        ),
        (
            "The cat sleeps under the table.",
            "Where at the table does the cat sleep?",
            "The cat sleeps under the table.",
            "The cat sleeps at the table.",
        ),
    ],
)
def test_small_words_may_be_the_whole_answer(index, passage, question, right, wrong):
    evidence = SourceTexts([passage], index.analyzer, index.lexicon)
    evidence.set_question(question)
    assert evidence.has_claim(right)
    assert not evidence.is_restated(right)
    assert evidence.find(right).score >= SUPPORT_THRESHOLD
    assert evidence.is_restated(wrong) or evidence.find(wrong).score < SUPPORT_THRESHOLD
    assert evidence.is_restated(question)


MANUALS = [
    "The P-200 pump moves 40 litres a minute at a head of 12 metres. Its motor draws 750 watts at "
    "230 volts. The P-100, built until 2011, moves 25 litres a minute and draws 400 watts. "
    "Open the outlet valve. Close the inlet valve only after the motor has stopped. Replace the "
    "shaft seal every 2,000 hours. The seal is part number 7714; the bearing kit is part number "
    "7720. It must not run dry for ten minutes. The red lamp means that the motor is too hot. The "
    "yellow lamp means that the filter is clogged. The pump was designed by Anna Keller in Basel "
    "and is built by Weber & Sons in Ulm.",
    "The fan was designed by Marta Lind. The red lamp of the fan means that the door is open.",
]


@pytest.mark.parametrize(
    "sentence",
    [
        "The P-100 moves 40 litres a minute.",
        "The P-100 draws 750 watts.",
        "The seal is part number 7720.",
        "The bearing kit is part number 7714.",
        "The yellow lamp means that the motor is too hot.",
        "The pump was designed by Anna Keller in Ulm.",
        "Close the inlet valve before the motor has stopped.",
        "Open the outlet valve only after the motor has stopped.",
        "The motor draws 750 volts.",
        "Replace the shaft seal every 2,000 minutes.",
        "The fan was designed by Anna Keller.",
        "The pump was designed by Marta Lind.",
    ],
)
def test_what_a_passage_says_of_another_thing_is_not_supported(index, sentence):
    evidence = SourceTexts(MANUALS, index.analyzer, index.lexicon)
    assert evidence.find(sentence).score < SUPPORT_THRESHOLD


@pytest.mark.parametrize(
    "sentence",
    [
        "The P-100 moves 25 litres a minute.",
        "The P-200's motor draws 750 watts.",
        "The bearing kit is part number 7720.",
        "The red lamp means that the motor is too hot.",
        "The pump is built by Weber & Sons in Ulm.",
        "The pump was designed by Anna Keller.",
        "Close the inlet valve after the motor has stopped.",
    ],
)
def test_what_a_passage_says_of_the_thing_itself_is_supported(index, sentence):
    evidence = SourceTexts(MANUALS, index.analyzer, index.lexicon)
    assert evidence.find(sentence).score >= SUPPORT_THRESHOLD


@pytest.mark.parametrize(
    "sentence",
    [
        "When the red lamp is on, stop the engine and let it cool for 10 minutes.",
        "The vehicle uses a diesel motor with a tank of 60 litres.",
    ],
)
def test_a_synonym_is_one_though_another_passage_has_the_word(index, sentence):
    passages = [
        "When the red lamp is on, stop the motor and let it cool for 10 minutes.",
        "The vehicle uses a diesel engine with a tank of 60 litres.",
    ]
    evidence = SourceTexts(passages, index.analyzer, index.lexicon)
    assert evidence.find(sentence).score >= SUPPORT_THRESHOLD
