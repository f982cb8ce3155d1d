import pytest

from stillroom.rag.analyzer import Analyzer


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Running runners ran", ["run", "runner", "ran"]),
        ("foo_bar", ["foo_bar", "foo", "bar"]),
        ("camelCase HTTPServer", ["camelcase", "camel", "case", "httpserver", "http", "server"]),
        ("v3.11.7", ["v3.11.7", "v3", "11", "7"]),
        ("CVE-2024-1", ["cve-2024-1", "cve", "2024", "1"]),
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


def test_each_language_has_its_own_fingerprint():
    prints = {Analyzer(name).fingerprint for name in ("none", "english", "german")}
    assert len(prints) == 3
    assert Analyzer("german").fingerprint == Analyzer("german").fingerprint


def test_a_long_word_is_bounded():
    assert all(len(term) <= 64 for term in Analyzer().terms("x" * 10_000 + "-" + "y" * 10_000))
