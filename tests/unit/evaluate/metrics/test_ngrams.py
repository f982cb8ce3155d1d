"""Character n-grams: chances add up to one, and follow the definition."""

import math
import random

import pytest

from stillroom.evaluate.metrics.ngrams import CharacterNGramModel


def reference(texts, text, order):
    """Witten and Bell's interpolation, told as a recursion over the texts themselves."""
    marked = ["\ue000" * (order - 1) + one + "\ue001" for one in texts]

    def chance(before, character):
        below = chance(before[1:], character) if before else 1 / 0x110000
        followers = [
            one[at + len(before)]
            for one in marked
            for at in range(order - 1 - len(before), len(one) - len(before))
            if one[at : at + len(before)] == before
        ]
        if not followers:
            return below
        kinds = len(set(followers))
        return (followers.count(character) + kinds * below) / (len(followers) + kinds)

    told = "\ue000" * (order - 1) + text + "\ue001"
    return -sum(
        math.log2(chance(told[at - order + 1 : at], told[at])) for at in range(order - 1, len(told))
    )


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bits_are_those_of_the_definition(order):
    rng = random.Random(order)
    for _ in range(20):
        texts = ["".join(rng.choices("abc ", k=rng.randrange(9))) for _ in range(4)]
        text = "".join(rng.choices("abcd ", k=rng.randrange(7)))
        found = CharacterNGramModel(texts, order=order).bits(text)
        assert found == pytest.approx(reference(texts, text, order), rel=1e-9)


def test_what_was_read_is_easier_than_what_was_not():
    model = CharacterNGramModel(["The nest is kept warm.", "The nest is kept dry."])
    assert model.bits("The nest is kept clean.") < model.bits("Das Nest bleibt sauber.") / 2
    assert CharacterNGramModel([]).bits("a") == pytest.approx(2 * math.log2(0x110000))
