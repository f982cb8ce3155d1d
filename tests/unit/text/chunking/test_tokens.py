import pytest

from stillroom.text import estimate_tokens
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.unicode import find_grapheme_boundary, is_grapheme_boundary


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("the cat sat.", 4), ("春眠不觉晓", 5), ("internationalization", 3), ("1234", 2)],
)
def test_tokens_are_about_word_pieces(text, tokens):
    assert estimate_tokens(text) == tokens


def test_a_ruler_agrees_with_counting_and_reaches_what_it_measures():
    text = "The quick brown fox, 1234 times; jumps over 春眠 dogs. " * 20
    ruler = TokenRuler(text)
    assert ruler.measure(0, len(text)) == estimate_tokens(text)
    for size in (1, 7, 50):
        stop = ruler.reach(0, size)
        assert estimate_tokens(text[:stop]) == size
        back = ruler.reach_back(len(text), size)
        assert estimate_tokens(text[back:]) == size


def test_a_callers_counter_sees_each_stretch_once():
    seen = []

    def count(text):
        seen.append(len(text))
        return len(text.split()) + 2

    text = "some words to count here " * 4000
    ruler = TokenRuler(text, count)
    assert sum(seen) == len(text)
    assert ruler.measure(0, len(text)) == pytest.approx(20_002, rel=0.01)


@pytest.mark.parametrize(
    "whole",
    ["e\u0301", "👍🏽", "👩‍👧", "🇩🇪", "\r\n", "한\u1100\u1161"[1:], "❤️", "क्षि"],
)
def test_no_cut_tears_what_a_person_sees_as_one(whole):
    text = f"a{whole}b"
    for position in range(2, 1 + len(whole)):
        assert not is_grapheme_boundary(text, position)
    assert is_grapheme_boundary(text, 1)
    assert is_grapheme_boundary(text, 1 + len(whole))


def test_flags_are_cut_between_not_within():
    text = "🇩🇪🇫🇷"
    assert [is_grapheme_boundary(text, at) for at in range(1, 4)] == [False, True, False]


def test_endless_marks_are_cut_all_the_same():
    text = "e" + "\u0301" * 10_000
    assert 0 < find_grapheme_boundary(text, 500, 0) <= 501
