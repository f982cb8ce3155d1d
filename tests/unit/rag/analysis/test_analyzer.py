from typing import get_args

import pytest

from stillroom.rag.analysis.analyzer import LANGUAGES, Analyzer, Stemming
from stillroom.rag.analysis.stop_words import STOP_WORDS


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Running runners ran", ["run", "runner", "ran"]),
        ("foo_bar", ["foobar", "foo", "bar"]),
        ("camelCase HTTPServer", ["camelcas", "camel", "case", "httpserver", "http", "server"]),
        ("v3.11.7", ["v3.11.7", "v3", "11", "7"]),
        ("CVE-2024-1", ["cve2024-1", "cve", "2024", "1"]),
        ("TCP/IP a@b.org", ["tcp/ip", "tcp", "ip", "a@b.org", "a", "b", "org"]),
        ("__init__ _private", ["__init__", "init", "_private", "privat"]),
        ("café", ["café", "cafe"]),
        ("C++ and C#", ["c++", "c", "and", "c#", "c"]),
        ("Claude's dogs’", ["claud", "dog"]),
        ("東京都", ["東京", "京都"]),
        ("猫", ["猫"]),
        ("ＦＵＬＬ ﬁne", ["full", "fine"]),
        ("हिन्दी", ["हिन्दी"]),
        ("()[]{}!?", []),
        ("", []),
    ],
)
def test_terms(text, terms):
    assert Analyzer("english").terms(text) == terms


def test_stop_words_count_only_where_nothing_else_stands():
    analyzer = Analyzer()
    assert analyzer.content_terms("the cat") == ["cat"]
    assert analyzer.content_terms("to be or not") == ["to", "be", "or", "not"]


@pytest.mark.parametrize("stemming", ["english", "porter"])
def test_english_question_words_are_indexed_but_searched_only_where_nothing_else_is_asked(stemming):
    analyzer = Analyzer(stemming)
    assert set(analyzer.query_terms("Why, when and how is the cache emptied?")) == {"cach", "empti"}
    assert set(analyzer.query_terms("The Who")) == {"who"}
    assert "how" in analyzer.index_terms("Who knows how?")
    assert set(Analyzer("none").query_terms("how why")) == {"how", "why"}


def test_each_language_has_its_own_fingerprint():
    prints = {Analyzer(name).fingerprint for name in ("none", "english", "german")}
    assert len(prints) == 3
    assert Analyzer("german").fingerprint == Analyzer("german").fingerprint


def test_a_long_word_is_bounded():
    assert all(len(term) <= 64 for term in Analyzer().terms("x" * 10_000 + "-" + "y" * 10_000))


PAGES = {
    "en": "The old houses stand on the hill. Nobody has been living in those houses.",
    "de": "Die alten Häuser stehen auf dem Hügel. In diesen Häusern wohnt niemand mehr.",
    "fr": "Les vieilles maisons sont sur la colline. Personne ne vit dans ces maisons.",
}


def test_auto_stems_each_text_as_its_language_asks():
    analyzer = Analyzer("auto")
    for code, text in PAGES.items():
        plain = Analyzer(LANGUAGES[code]).terms(text)
        assert analyzer.terms(text, code) == [f"{code}:{term}" for term in plain]
    assert analyzer.terms("foo_bar", "de") == ["de:foobar", "de:foo", "de:bar"]
    assert analyzer.terms("東京都", "ja") == ["東京", "京都"]
    assert analyzer.terms("houses", "xx") == analyzer.terms("houses") == ["en:hous"]


@pytest.mark.parametrize(
    ("query", "code"), [("a house", "en"), ("ein Haus", "de"), ("une maison", "fr")]
)
def test_auto_finds_inflections_in_any_language(query, code):
    analyzer = Analyzer("auto")
    asked = set(analyzer.query_terms(query))
    held = {name: set(analyzer.index_terms(text, name)) for name, text in PAGES.items()}
    assert [name for name in PAGES if asked & held[name]] == [code]
    assert not asked & analyzer.stop_words


def test_a_stop_word_of_one_language_counts_in_another():
    analyzer = Analyzer("auto")
    asked = analyzer.query_terms("die")
    assert "en:die" in asked
    assert "de:die" not in asked
    assert analyzer.query_terms("Das Haus, das Haus")["de:haus"] == 2
    for title in ("The Who", "To be or not to be"):  # stop words alone, in their own language
        assert analyzer.query_terms(title).keys() & set(analyzer.index_terms(title, "en"))
    assert Analyzer("german").content_terms("das Haus und der Hof") == ["haus", "hof"]
    assert Analyzer("german").content_terms("und") == ["und"]


def test_single_letters_of_chinese_are_kept_in_an_index_and_asked_for_alone():
    analyzer = Analyzer()
    assert analyzer.index_terms("明月光") == ["明月", "月光", "明", "月", "光"]
    assert analyzer.index_terms("月 hello") == ["月", "hello"]
    assert analyzer.query_terms("明月光") == {"明月": 1, "月光": 1}
    assert analyzer.query_terms("月") == {"月": 1}


def test_every_language_has_a_stemmer():
    assert set(LANGUAGES.values()) < set(get_args(Stemming))
    assert set(STOP_WORDS) <= set(LANGUAGES.values())
    for name in LANGUAGES.values():
        assert Analyzer(name).terms("word")
