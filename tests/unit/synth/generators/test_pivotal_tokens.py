import random

import pytest
from tests.unit.synth.generators.hostile import HOSTILE, SUM, draft_of, reasons, survives

from stillroom.synth.generators.pivotal_tokens import PivotalTokens
from stillroom.synth.method import Seed

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


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    method = PivotalTokens(samples=4, min_chance=0)
    survives(lambda model: method.generate([Seed(SUM, "train")], model), said)
