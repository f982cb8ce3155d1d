import random

import pytest
from tests.unit.synth.generators.hostile import HOSTILE, SUM, draft_of, reasons, survives

from stillroom.synth.generators.pivotal_tokens import PivotalTokens, _Chance, _contrary
from stillroom.synth.types import WorkItem

RIGHT, WRONG = "First we add them up. The answer is 7.", "First we multiply them. The answer is 12."


def world(chance=0.5):
    """A teacher whose success hangs on one word: add, or multiply."""
    rng = random.Random(5)

    def say(prompt):
        begun = prompt.prefix
        for whole in (RIGHT, WRONG):
            if "add" in begun or "multiply" in begun:
                if ("add" in begun) == (whole is RIGHT):
                    return whole[len(begun) :]
                continue
        whole = RIGHT if rng.random() < chance else WRONG
        return whole[len(begun) :]

    return say


def test_the_word_on_which_success_hangs_is_found_with_its_contrary():
    made, _ = draft_of(PivotalTokens(samples=24), SUM, world())
    assert made.records
    for record in made.records:
        told = record.fields
        assert told["prefix"] == "First we"
        assert told["chosen"] == "First we add"
        assert told["rejected"] == "First we multiply"
        assert told["chance_chosen"] == 1.0
        assert told["chance_rejected"] == 0.0
        assert 0.2 <= told["chance_before"] <= 0.8
        assert record.messages[-1].content == told["chosen"]
    assert len(made.records) == 1  # both solutions lead to the same pair


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_easy_and_hard_questions_are_left_out(chance):
    made, _ = draft_of(PivotalTokens(samples=8), SUM, world(chance))
    assert reasons(made)[-1] == "question too easy or too hard"
    assert made.asked == 8


def test_a_chance_that_does_not_jump_gives_nothing():
    rng = random.Random(2)
    made, _ = draft_of(
        PivotalTokens(samples=16, threshold=0.9, min_chance=0, max_chance=1),
        SUM,
        lambda prompt: f" The answer is {rng.choice((7, 8))}.",
    )
    assert not made.records


def test_a_jump_must_be_more_than_chance():
    few, _ = draft_of(PivotalTokens(samples=4, min_z=9, min_chance=0, max_chance=1), SUM, world())
    assert not few.records


def test_what_is_chosen_raises_the_chance_and_what_is_rejected_lowers_it():
    starts = {" add": (9, 12), " guess": (0, 4), " try": (2, 8), " list": (3, 12)}
    before = _Chance(16, 32, starts)
    assert _contrary(before, " add", 0.75, True, 0.2) == (" guess", 0.0)
    assert _contrary(before, " guess", 0.0, False, 0.2) == (" add", 0.75)
    low = _Chance(16, 32, {" guess": (0, 4), " try": (2, 8)})
    assert _contrary(low, " guess", 0.0, False, 0.2) is None  # .25 is no rise from .5


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    method = PivotalTokens(samples=4, min_chance=0)
    survives(lambda model: method.generate([WorkItem(SUM, "train")], model), said)
