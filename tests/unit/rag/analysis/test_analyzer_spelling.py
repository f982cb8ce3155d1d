"""Two usual spellings of one word find each other: in every language, in words and in phrases."""

from typing import get_args

import pytest

from stillroom.rag.analysis.analyzer import Analyzer, Stemming, fold_diacritics, normalize_numbers
from stillroom.rag.analysis.phrases import match_clauses, parse_query
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve

PAIRS = [
    ("getusername", "getUserName"),
    ("get_user_name", "getUserName"),
    ("GETUSERNAME", "get-user-name"),
    ("email", "e-mail"),
    ("email", "E\u2011Mail"),
    ("wifi", "Wi-Fi"),
    ("wi-fi", "WiFi"),
    ("coordinate", "co-ordinate"),
    ("nodejs", "Node.js"),
    ("usa", "U.S.A."),
    ("utf8", "UTF-8"),
    ("GPU", "GPUs"),
    ("P-200", "P-200's"),
    ("gpus", "GPUs"),
    ("pdf", "PDFs"),
    ("mp3", "MP3s"),
    ("5kg", "5 kg"),
    ("24h", "24 h"),
    ("covid19", "COVID-19"),
    ("postgresql", "PostgreSQL"),
    ("oreilly", "O\u2019Reilly"),
    ("1990s", "1990's"),
    ("dont", "don't"),
    ("content", "con\u00adtent"),
    ("cafe", "café"),
    ("resume", "résumé"),
    ("Zurich", "Zürich"),
    ("smorrebrod", "smørrebrød"),
    ("coeur", "cœur"),
    ("istanbul", "İSTANBUL"),
    ("αθηνα", "Αθήνα"),
    ("елка", "ёлка"),
    ("كتاب", "كِتَاب"),
    ("1,234", "1234"),
    ("1\u202f234\u202f567", "1,234,567"),
    ("1'234", "1_234"),
    ("12,34,567", "1234567"),
    ("1.234.567,5", "1,234,567.5"),
    ("3,5", "3.5"),
    ("٣٤", "34"),
]


@pytest.mark.parametrize("stemming", get_args(Stemming))
def test_spellings_of_one_word_share_a_term(stemming):
    analyzer = Analyzer(stemming)
    for pair in PAIRS:
        for asked, written in (pair, pair[::-1]):
            held = set(analyzer.index_terms(written))
            assert held & analyzer.query_terms(asked).keys(), (asked, written)


@pytest.mark.parametrize("stemming", ["english", "german", "none", "auto"])
def test_umlauts_are_spelled_out(stemming):
    analyzer = Analyzer(stemming)
    assert set(analyzer.index_terms("Müller")) & analyzer.query_terms("mueller").keys()


@pytest.mark.parametrize("stemming", ["english", "none", "auto"])
@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("C++", "C/C++"),
        ("C++", "for C/C++/C# only"),
        ("C#", "VB/C#"),
        ("g++", "gcc/g++"),
        ("C++", "Visual-C++-Compiler"),
        ("C++", "language:C++"),
        ("C#", "C++&C#."),
    ],
)
def test_a_name_that_ends_in_signs_is_found_within_a_compound(asked, written, stemming):
    analyzer = Analyzer(stemming)
    whole = asked.casefold()
    assert whole in analyzer.index_terms(written)
    assert whole in analyzer.query_terms(written)
    assert analyzer.phrases(asked)[0][0] in analyzer.phrases(written)[0]


def test_a_sign_within_a_word_divides_no_compound():
    assert Analyzer("none").terms("page/b#part a/c++x")[:4] == ["page/b#part", "page", "b", "part"]


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("1.5", "15"),
        ("3.11.7", "3117"),
        ("2019-12", "201912"),
        ("1,23", "123"),
        ("C++", "C#"),
        ("a/b", "ab"),
        ("über", "ober"),
        ("мой", "моя"),
    ],
)
def test_what_is_another_word_stays_another(asked, written):
    analyzer = Analyzer("none")
    wholes = [analyzer.phrases(text) for text in (asked, written)]
    assert wholes[0] != wholes[1]
    assert not {asked, written} <= set(analyzer.terms(asked))
    assert not {asked, written} <= set(analyzer.terms(written))


@pytest.mark.parametrize(
    ("text", "has_dots", "expected"),
    [
        ("1,234 and 12,345,678.90", False, "1234 and 12345678.90"),
        ("1.234 kg", False, "1.234 kg"),
        ("1.234 kg", True, "1234 kg"),
        ("1.234.567", False, "1234567"),
        ("v1,234", False, "v1,234"),
        ("1,2,3", False, "1,2,3"),
        ("1,234,5", False, "1,234,5"),
        ("01.02.2024", True, "01.02.2024"),
        ("3,14159", False, "3.14159"),
        ("1,234, and", False, "1234, and"),
        ("snake_1_000", False, "snake_1_000"),
    ],
)
def test_numbers_lose_the_marks_between_thousands(text, has_dots, expected):
    assert normalize_numbers(text, has_dots=has_dots) == expected


def test_marks_that_a_script_needs_stay():
    for word in ("हिन्दी", "мой", "தமிழ்", "ไทย"):
        assert fold_diacritics(word) == word
    assert fold_diacritics("việt") == "viet"


def test_a_word_with_accents_counts_once():
    analyzer = Analyzer("none")
    assert sum(analyzer.query_terms("café noir").values()) == pytest.approx(2)
    assert analyzer.get_positioned_terms(["café noir"])[1] == 2
    assert (
        analyzer.get_positioned_terms(["getUserName"])[1] == len(analyzer.terms("getUserName")) == 4
    )


TEXTS = {
    "apart.md": "Write the e-mail address of the Café Zürich into getUserName now.",
    "joined.md": "Write the email address of the cafe Zurich into getusername now.",
    "spaced.md": "The real-time clock costs 1,234 francs; the real time is kept by it.",
    "other.md": "Nothing of the kind is written in this one, which is about corn.",
}


@pytest.fixture(params=["english", "auto"])
def index(build, folder, tmp_path, request):
    for path in sorted(folder.rglob("*.*")):
        path.unlink()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    build(keyword={"stemming": request.param})
    with Index.open(tmp_path / "index") as opened:
        yield opened


FOUND = {
    '"email address of"': {"apart.md", "joined.md"},
    '"e-mail address of"': {"apart.md", "joined.md"},
    '"the cafe Zurich into"': {"apart.md", "joined.md"},
    '"Café Zürich into get_user_name now"': {"apart.md", "joined.md"},
    '"into getusername now"': {"apart.md", "joined.md"},
    '"user name now"': {"apart.md"},
    '"real-time clock"': {"spaced.md"},
    '"real time is"': {"spaced.md"},
    '"real-time is"': {"spaced.md"},
    '"costs 1234 francs"': {"spaced.md"},
    "body:getusername": {"apart.md", "joined.md"},
    # Parts of a word do not stand for all of it.
    '"mail into"': set(),
    '"user now"': set(),
    '"into name"': set(),
    '"e address"': set(),
}


def test_phrases_and_words_do_not_depend_on_spelling(index):
    for query, expected in FOUND.items():
        rows = (
            match_clauses(parse_query(query)[1], index.lexicon, index.analyzer)
            .nonzero()[0]
            .tolist()
        )
        assert {index.passage_at(row).location.path for row in rows} == expected, query
    for asked in ("getUserName e-mail café", "getusername email cafe"):
        hits = retrieve(index, asked, 4, retriever="keyword")
        assert {hit.passage.location.path for hit in hits[:2]} == {"apart.md", "joined.md"}
