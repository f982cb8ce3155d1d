"""Sentences of a passage's words that exchange who did what, or say all for some, are refused."""

import pytest

from stillroom.rag.analysis.analyzer import Analyzer
from stillroom.rag.groundedness.roles import find_roles, reverses_roles
from stillroom.rag.groundedness.score import SUPPORT_THRESHOLD, SourceTexts
from stillroom.rag.interfaces import CHECKERS

PASSAGES = [
    "Brazil defeated Italy in the final of 1970.",
    "The compiler calls the linker once all objects exist.",
    "The subclass overrides the method of the base class.",
    "Wolves hunt deer in winter, while bears eat berries.",
    "The senate rejected the bill, and the house rejected the budget.",
    "Bread contains flour, water, salt and yeast. The tool reads and writes files.",
    "Anna designed the bridge. The filter removes the noise of the sensor.",
    "Users install packages through pip. Cats chase mice; dogs chase cats.",
    "Den Ball wirft der Junge. Der Hund sieht die Katze.",
    "Steam acts upon these blades. Turbines often exhaust into a condenser.",
    "The emperor Henry III legally ennobled the Hauteville leader, Drogo, in 1047.",
    "The system of records kept by Anna Berg replaced various older lists.",
    "A free-living alga entered an early host cell. All membranes surround the cell.",
    "The acquisition of Alpha for $68.7 billion in March was followed by that of Beta for $3.2"
    " billion in May. The January issue of the journal featured the microcomputer of Beta.",
]
RIGHT = [
    (1, "Italy was defeated by Brazil in the final of 1970."),
    (1, "In the final of 1970, Brazil defeated Italy."),
    (2, "The linker is called by the compiler."),
    (2, "Once all objects exist, the compiler calls the linker."),
    (3, "The method of the base class is overridden by the subclass."),
    (4, "Deer are hunted by wolves in winter."),
    (5, "The budget was rejected by the house."),
    (6, "Bread contains water, flour, yeast and salt."),
    (6, "The tool writes and reads files."),
    (7, "The bridge designed by Anna."),
    (7, "The noise removed by the filter is that of the sensor."),
    (8, "Packages are installed through pip by users."),
    (8, "Dogs chase cats; cats chase mice."),
    (9, "Der Junge wirft den Ball."),
    (10, "Turbines exhaust often into a condenser."),
    (11, "In 1047 the Hauteville leader Drogo was legally ennobled by the emperor Henry III."),
    (12, "Anna Berg kept a system of records that replaced various older lists."),
    (13, "An early host cell was entered by a free-living alga."),
    (13, "The cell is surrounded by all membranes."),
    (14, "It paid $3.2 billion for Beta in May."),
    (14, "The microcomputer featured in the journal is that of Beta."),
]
WRONG = [
    (1, "Italy defeated Brazil in the final of 1970."),
    (1, "Brazil was defeated by Italy in the final of 1970."),
    (2, "The linker calls the compiler once all objects exist."),
    (2, "The compiler is called by the linker."),
    (3, "The base class overrides the method of the subclass."),
    (4, "Deer hunt wolves in winter."),
    (4, "Berries eat bears."),
    (10, "The blades act upon steam."),
    (10, "Turbines always exhaust into a condenser."),
    (10, "All turbines exhaust into a condenser."),
    (11, "Henry III was legally ennobled by the Hauteville leader, Drogo, in 1047."),
    (12, "Various older lists replaced the system of records."),
]


@pytest.fixture
def evidence(index):
    return SourceTexts(PASSAGES, index.analyzer, index.lexicon)


@pytest.mark.parametrize(("number", "sentence"), RIGHT)
def test_another_order_or_voice_that_says_the_same_is_supported(number, sentence, evidence):
    assert evidence.measure(sentence, number) >= SUPPORT_THRESHOLD


@pytest.mark.parametrize(("number", "sentence"), WRONG)
def test_an_exchange_of_subject_and_object_is_not_supported(number, sentence, evidence):
    assert evidence.measure(sentence, number) == 0


def test_the_trained_checker_refuses_an_exchange_as_well(index):
    evidence = CHECKERS.build("trained").hold(PASSAGES, index)
    assert evidence.measure("Brazil was defeated by Italy in the final of 1970.", 1) == 0


def test_a_verb_that_says_the_same_both_ways_has_no_roles():
    said, there = (
        find_roles(text, lambda word: Analyzer().terms(word)[0])
        for text in ("Ben married Anna.", "Anna married Ben.")
    )
    assert not reverses_roles(said, there)
