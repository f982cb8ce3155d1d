import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.rag.analysis.phrases import find_acronyms, find_phrases


def phrases(text, language=""):
    return [text[one.start : one.end] for one in find_phrases(text, language)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The physicist Marie Curie was there.", ["physicist Marie Curie", "Marie Curie"]),
        ("He studied at the University of Oxford.", ["University of Oxford"]),
        ("We use the compiler often.", ["compiler"]),
        ("Set `max_tokens` in CVE-2024-1.", ["max_tokens", "CVE-2024-1"]),
        ("They quickly run to it.", []),
        ("Large language models are here.", ["Large language models"]),
        ("Fairhaven Yard is here. Stockholm is there.", ["Fairhaven Yard", "Stockholm"]),
        ("東京は日本の首都です。", ["東京", "日本", "首都"]),
        ("I've seen Claude's answer.", ["Claude's answer", "Claude's"]),
        ("", []),
        ("12 34 5.6", []),
    ],
)
def test_phrases_are_runs_of_content_words_and_names(text, expected):
    assert phrases(text) == expected


def test_in_a_language_without_known_function_words_only_names_count():
    text = "Der Bundestag tagt in Berlin und wählt."
    assert phrases(text, "de") == ["Der Bundestag", "Berlin"]


def test_marks_and_repeats_end_a_phrase():
    assert "python python" not in phrases("the python\npython code")
    assert phrases("the red, blue sky") == ["red", "blue sky"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the World Bank Group (WBG) lends", [("WBG", "World Bank Group")]),
        ("Retrieval-augmented generation (RAG)", [("RAG", "Retrieval-augmented generation")]),
        ("as we said (IBM)", []),
        ("a long sentence. Apples (NASA)", []),
    ],
)
def test_acronyms_are_defined_by_the_words_before_them(text, expected):
    assert find_acronyms(text) == expected


@given(st.text(max_size=300))
def test_any_text_gives_spans_within_it_in_order(text):
    found = find_phrases(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert [one.start for one in found] == sorted(one.start for one in found)
    assert len({(one.start, one.end) for one in found}) == len(found)
    for short, long in find_acronyms(text):
        assert short in text
        assert long
