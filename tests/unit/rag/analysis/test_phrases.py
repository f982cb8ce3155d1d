import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.models import open_embedder
from stillroom.rag.analysis.phrases import PhraseClause, parse_query
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve

RETRIEVERS = ("keyword", "dense", "hybrid", "convex")


def paths(hits):
    return [hit.passage.location.path for hit in hits]


@pytest.mark.parametrize(
    ("text", "plain", "clauses"),
    [
        ("plain words", "plain words", ()),
        ('about "two  words" here', "about two  words here", (PhraseClause("two words"),)),
        ("“curly ones”", "curly ones", (PhraseClause("curly ones"),)),
        ("headings:Cats sleep", "Cats sleep", (PhraseClause("Cats", "headings"),)),
        ("title:Cats", "Cats", (PhraseClause("Cats", "headings"),)),
        ('body:"cats purr"', "cats purr", (PhraseClause("cats purr", "body"),)),
        ('a "b" body:c', "a b c", (PhraseClause("b"), PhraseClause("c", "body"))),
        ('"unpaired', '"unpaired', ()),
        ('"" empty', '"" empty', ()),
        ("col:val std::vector http://x.y", "col:val std::vector http://x.y", ()),
        ('col:"a b"', 'col:"a b"', ()),
        ("title: apart", "title: apart", ()),
        ("12:30 a:b:c", "12:30 a:b:c", ()),
    ],
)
def test_quotes_and_fields_are_read_and_all_else_is_words(text, plain, clauses):
    assert parse_query(text) == (plain, clauses)


@given(st.text(st.sampled_from('ab":“” \n\x00(*)~^titlebody\ud800'), max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_raises_and_no_word_is_lost(text):
    plain, clauses = parse_query(text)
    kept = [mark for mark in text if mark not in '"“”:\n ']
    if not clauses:
        assert plain == text
    else:
        rest = iter(kept)
        assert all(mark in rest for mark in plain if mark not in '"“”:\n ')


def test_beyond_sixteen_clauses_the_rest_are_words():
    assert len(parse_query('"a" ' * 40)[1]) == 16


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_a_phrase_stands_in_every_hit(index, retriever):
    assert paths(retrieve(index, 'animal "guard the house"', 6, retriever=retriever)) == [
        "animals/dogs.md"
    ]
    assert paths(retrieve(index, '"guarding the houses"', 6, retriever=retriever)) == [
        "animals/dogs.md"
    ]


@pytest.mark.parametrize("retriever", RETRIEVERS)
def test_a_field_stands_in_every_hit(index, retriever):
    assert paths(retrieve(index, "headings:python compiler", 6, retriever=retriever)) == [
        "code/python.md"
    ]
    assert paths(retrieve(index, 'body:"capital of France"', 6, retriever=retriever)) == [
        "places/paris.txt"
    ]


def test_a_word_of_the_text_is_not_one_of_the_headings(index):
    with pytest.warns(UserWarning, match="searched without them"):
        found = retrieve(index, "headings:compiler", 6, retriever="keyword")
    assert paths(found) == ["code/python.md"]


def test_clauses_join_and_a_filter_holds_beside_them(index):
    both = retrieve(index, '"c" "17"', 6, retriever="keyword")
    assert paths(both) == ["code/cpp.md"]
    narrow = index.restrict("path ~ 'animals/*'")
    with pytest.warns(UserWarning, match="searched without them"):
        found = retrieve(narrow, '"capital of France" cat', 6)
    assert all(path.startswith("animals/") for path in paths(found))


def test_phrases_are_found_in_each_language_with_auto(build, tmp_path):
    build(keyword={"stemming": "auto"})
    with Index.open(tmp_path / "index") as index:
        assert paths(retrieve(index, '"guarding the houses"', 6)) == ["animals/dogs.md"]


def test_an_index_searches_by_the_settings_of_its_recipe_unless_others_are_given(build, tmp_path):
    build(keyword={"k1": 1.5, "b": 0.6})

    def scores(**given):
        retriever = {"name": "keyword", **given}
        hits = retrieve(index, "cats purr at night", 6, retriever=retriever)
        return [(hit.passage.id, hit.score) for hit in hits]

    with Index.open(tmp_path / "index", embedder=open_embedder("static")) as index:
        assert scores() == scores(k1=1.5, b=0.6) != scores(k1=0.5)
