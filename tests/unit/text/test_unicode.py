import pytest

from stillroom.text import exact_match, normalize_text, split_words, strip_invisible, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  CAT's hat!", "the cat's hat"),
        ("ﬁne ＡＢＣ①", "fine abc1"),
        ("Straße\u00ad STRASSE", "strasse strasse"),
        ("春眠 a1", "春 眠 a1"),
        ("snake_case x-ray", "snake case x ray"),
        ("", ""),
    ],
)
def test_equal_texts_get_one_form(text, expected):
    assert normalize_text(text) == expected


def test_words_of_any_text_are_the_same_after_hiding_characters_in_it():
    assert split_words("pass\u200bword \u202eabc") == ["password", "abc"]


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "exact"),
    [
        ("The cat.", "cat", 1.0, 1.0),
        ("the big cat", "a cat", 2 / 3, 0.0),
        ("cat cat dog", "cat dog dog", 2 / 3, 0.0),
        ("", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("dog", "cat", 0.0, 0.0),
        ("東京都", "東京", 0.8, 0.0),
    ],
)
def test_answer_scores_are_those_of_squad(prediction, reference, f1, exact):
    assert token_f1(prediction, reference) == pytest.approx(f1)
    assert exact_match(prediction, reference) == exact


@pytest.mark.parametrize(
    "text",
    ["👩‍👩‍👧‍👦", "👍🏽", "❤️", "می‌خواهم", "क्‍ष", "naïve e\u0301", "plain\ttext\n"],
)
def test_what_writing_needs_is_not_stripped(text):
    assert strip_invisible(text) == text


@pytest.mark.parametrize(
    "hidden",
    [
        "\u200b",
        "\u2060",
        "\ufeff",
        "\u202e",
        "\u2066",
        "\U000e0041",
        "\U000e0100",
        "\x1b",
        "\x00",
        "\u200d",
    ],
)
def test_what_only_a_model_would_read_is_stripped(hidden):
    assert strip_invisible(f"a{hidden}b{hidden}{hidden}c") == "abc"


def test_line_ends_become_one_kind():
    assert strip_invisible("a\r\nb\rc\n") == "a\nb\nc\n"
