"""Items are found however they were changed, and what only shares words with them is left."""

import random
import time
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.text.dedup.decontamination import BenchmarkIndex, count_document_frequencies
from stillroom.text.dedup.paraphrases import ParaphraseIndex, find_anchors, find_numbers

RNG = random.Random(0)
SYLLABLES = "ba ke li mo nu sa ti vo ra de".split()
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]


def sentence(size):
    return " ".join(RNG.choice(WORDS) for _ in range(size))


ITEMS = [sentence(RNG.randint(20, 45)) for _ in range(40)]


def change(text, every):
    words = text.split()
    return " ".join("other" if at % every == every // 2 else w for at, w in enumerate(words))


@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        (lambda item: item, {"whole"}),
        (lambda item: item.upper() + " !", {"whole"}),
        (lambda item: f"{sentence(90)} {item} {sentence(90)}", {"verbatim"}),
        (lambda item: change(item, 10), {"near"}),
        (lambda item: change(item, 6), {"near"}),
        (lambda item: f"{sentence(90)} {change(item, 6)} {sentence(90)}", {"near"}),
        (lambda item: " ".join(RNG.sample(item.split(), len(item.split()))), {"shuffled", "near"}),
    ],
)
def test_an_item_is_found_however_it_was_changed(how, kinds):
    index = BenchmarkIndex(ITEMS)
    found = [index.find(how(item)) for item in ITEMS]
    assert all(match is not None for match in found)
    assert [match.item for match in found] == list(range(len(ITEMS)))
    assert {match.kind for match in found} <= kinds


def test_rare_words_count_more_than_common_ones():
    item = "What is the boiling point of krypton in the old scale of Réaumur?"
    common = "What is the point of the old scale in the end of it?"
    texts = [common] * 40
    frequency, count = count_document_frequencies(texts)
    index = BenchmarkIndex([item], frequency=frequency, texts=count)
    assert index.find(common) is None
    assert (
        index.find("Tell me: what is the boiling point of krypton in the scale of Réaumur")
        is not None
    )


def test_short_items_must_stand_word_for_word_and_the_shortest_alone():
    index = BenchmarkIndex(["Who wrote the Odyssey?", "Paris"])
    assert index.find("I ask you who wrote the odyssey, friend.").kind == "verbatim"
    assert index.find("Who wrote the great Odyssey of old?") is None
    assert index.find("Paris.").kind == "whole"
    assert index.find("We went to Paris in spring.") is None


@settings(deadline=None)
@given(st.lists(st.text("ab c\n", max_size=30), max_size=6), st.text("ab c\n", max_size=60))
def test_any_text_and_items_give_a_match_that_is_a_share(items, text):
    match = BenchmarkIndex(items).find(text)
    if match is not None:
        assert 0 <= match.item < len(items)
        assert 0 < match.share <= 1 + 1e-9


def test_names_and_numbers_are_anchors_in_figures_or_words():
    found = find_anchors(
        "Sixty mango trees stand on Randy's farm, and 1,250.00 more. He counts two."
    )
    assert found == {"60", "randy", "1250"}


def test_of_texts_equally_close_that_with_the_same_names_is_the_rewording():
    items = ["Randy has 60 trees. How many in all?", "Julie has 12 trees. How many in all?"]
    vectors = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    index = ParaphraseIndex(items, vectors)
    query = np.array([0.8, 0.6], dtype=np.float32)
    found = index.find("Count the trees that sixty-tree owner Randy has", query)
    assert (found.item, round(found.cosine, 3), found.anchors) == (0, 0.8, 1.0)
    assert found.score == pytest.approx(1.0)
    other = index.find("Count the trees of a man", query)
    assert other.anchors == 0.0


ITEM = "Sam bought 37 pens at $4.25 and 118 clips, and paid with 412 dollars. What is left?"


def look_for(text, *, cosine, count=1000):
    """Return the likeness of a text to the one item, in texts that hold none of its words."""
    index = ParaphraseIndex([ITEM], np.array([[1.0, 0.0]], dtype=np.float32), texts=count)
    vector = np.array([cosine, (1 - cosine**2) ** 0.5], dtype=np.float32)
    return index.find(text, vector)


def test_the_same_numbers_in_the_same_order_are_the_question_in_other_names():
    other = "Ute kauft 37 Rosen zu 4.25 und 118 Tulpen und zahlt mit 412 Euro. Was bleibt?"
    assert find_numbers(other) == ["37", "4.25", "118", "412"]
    assert look_for(other, cosine=0.3).score > 0.86
    shuffled = "Ute zahlt mit 412 Euro, kauft 118 Tulpen zu 4.25 und 37 Rosen."
    assert look_for(shuffled, cosine=0.3).order == 0.0
    more = "Of 37 men 12 left, 90 came, 4.25 and 118 and 66 were 412 or 81 or 55 or 73."
    assert look_for(more, cosine=0.3).order == 0.0


@settings(deadline=None)  # a busy machine
@given(st.lists(st.sampled_from(["37", "4.25", "118", "412", "three", "x"]), max_size=9))
def test_an_order_is_bounded_and_largest_for_the_item_itself(told):
    found = look_for(" ".join(told), cosine=0.5)
    assert 0 <= found.order <= look_for(ITEM, cosine=0.5).order <= 13
    assert 0 <= found.anchors <= 1


def test_common_words_shared_are_little_and_none_are_neither():
    frequency = {"3": 600, "sam": 500}
    vectors = np.array([[1.0, 0.0]], dtype=np.float32)
    common = ParaphraseIndex(["Sam has 3. Why?"], vectors, frequency=frequency, texts=1000)
    found = common.find("Sam eats 3. Who?", np.array([1.0, 0.0], dtype=np.float32))
    assert 0 < found.anchors < 0.4
    plain = ParaphraseIndex(["which games suit a group"], vectors, texts=1000)
    assert plain.find("anything", vectors[0]).anchors == pytest.approx(0.3)


def test_without_items_nothing_is_like_anything():
    empty = ParaphraseIndex([], np.zeros((0, 2), dtype=np.float32))
    assert empty.find("text", np.ones(2, dtype=np.float32)) is None
    assert BenchmarkIndex([]).find("text") is None


def test_the_same_question_about_another_place_is_another_question():
    index = BenchmarkIndex(["What does the old dairy of Elm churn every week?"])
    assert index.find("What does the old dairy of Birch churn every week?") is None
    near = index.find("What does the old dairy of Elm churn each week?")
    assert near is not None
    assert near.kind == "near"


LONG = (
    "A farmer has 24 rows of corn with 18 plants in each row, and every plant bears 3 ears. "
    "How many ears does he harvest?"
)


@pytest.mark.parametrize(
    ("item", "text", "is_found"),
    [
        (LONG, LONG.replace("corn", "maize").replace("plant bears", "stalk has"), True),
        (LONG, LONG.replace("24", "31").replace("18", "22").replace("3 ", "2 "), False),
        (LONG, f"In 1990 he had 7 cows. {LONG.replace('farmer', 'man')} Take 10 minutes.", True),
    ],
)
def test_the_same_template_with_other_numbers_is_another_question(item, text, is_found):
    assert (BenchmarkIndex([item]).find(text) is not None) == is_found


def score_of(item, text, cosine):
    index = ParaphraseIndex([item], np.array([[1.0, 0.0]], dtype=np.float32))
    row = np.array([cosine, (1 - cosine**2) ** 0.5], dtype=np.float32)
    return index.find(text, row).score


@pytest.mark.parametrize(
    ("item", "text", "cosine"),
    [
        (
            "List three advantages of electric cars.",
            "List three disadvantages of electric cars.",
            0.91,
        ),
        ("Return the largest number of a list.", "Return the smallest number of a list.", 0.9),
        ("Write a haiku about the first snow.", "Write a limerick about the first snow.", 0.83),
        ("What is the sum of 2 to 50?", "What is the sum of 2 to 120?", 0.9),
        ("Who composed the opera The Magic Flute?", "Who composed the opera The Dutchman?", 0.85),
    ],
)
def test_a_sibling_of_an_item_is_no_rewording(item, text, cosine):
    assert score_of(item, text, cosine) < 0.86
    assert score_of(item, item, 1.0) >= 0.86


def test_a_synonym_in_the_same_template_is_a_rewording():
    item, text = "How do plants make food from light?", "How do plants produce food from light?"
    assert score_of(item, text, 0.97) >= 0.86


def test_an_imperative_is_no_name():
    assert find_anchors("Write a poem about Elm. Name three rivers.") == {"elm", "3"}


def test_the_opposite_of_a_word_is_another_short_item():
    item = "Write a function that returns the smallest positive integer missing from a list of it."
    index = BenchmarkIndex([item])
    assert index.find(item.replace("positive", "even")) is not None
    assert index.find(item.replace("smallest positive", "largest negative")) is None
    assert index.find(item.replace("list", "listing into one")) is not None


def test_long_texts_are_searched_fast_and_to_their_end():
    draws = random.Random(1)
    words = [f"word{rank}" for rank in range(20_000)]
    frequencies = list(accumulate(1 / (rank + 1) for rank in range(20_000)))

    def write(count):
        return draws.choices(words, cum_weights=frequencies, k=count)

    items = [write(40) for _ in range(100)]
    index = BenchmarkIndex([" ".join(item) for item in items])
    text = write(32_000)
    started = time.process_time()
    assert index.find(" ".join(text)) is None
    assert time.process_time() - started < 1.5
    changed = ["other" if place % 9 == 4 else word for place, word in enumerate(items[7])]
    for start in (0, 15_001, 32_000):
        longer = [*text[:start], *changed, *text[start:]]
        found = index.find(" ".join(longer))
        assert (found.item, found.kind) == (7, "near")


def test_a_verbatim_item_is_found_whatever_share_is_asked():
    items = [" ".join(RNG.choices(WORDS[:300], range(300), k=60)) for _ in range(300)]
    index = BenchmarkIndex(items, near=1, shuffled=1)
    for number, item in enumerate(items):
        found = index.find(f"Before it. {item} And after it.")
        assert (found.item, found.kind) == (number, "verbatim")
