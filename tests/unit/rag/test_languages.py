"""An index over several languages: each document is stemmed as its own asks."""

import pytest

from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve

PAGES = {
    "de.txt": "Die alten Häuser stehen auf dem Hügel. In diesen Häusern wohnt seit Jahren niemand.",
    "fr.txt": "Les vieilles maisons sont sur la colline. Personne ne vit dans ces maisons depuis.",
    "en.txt": "The old mills stand by the river. Nobody has been living in those mills for years.",
    "zh.txt": "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
}


@pytest.fixture
def several(build, folder, tmp_path):
    for name, text in PAGES.items():
        (folder / name).write_text(text, encoding="utf-8")
    build(keyword={"stemming": "auto"})
    with Index.open(tmp_path / "index") as opened:
        yield opened


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("das Haus", "de.txt"),
        ("une maison", "fr.txt"),
        ("a mill", "en.txt"),
        ("明月", "zh.txt"),
        ("霜", "zh.txt"),
    ],
)
def test_a_word_is_found_in_its_language(several, query, path):
    hits = retrieve(several, query, 3, retriever="keyword")
    assert [hit.passage.location.path for hit in hits] == [path]


def test_passages_carry_the_language_of_their_document(several):
    found = {}
    for row in range(len(several)):
        passage = several.passage_at(row)
        found[passage.location.path] = passage.language
    assert {name: found[name] for name in PAGES} == {
        "de.txt": "de",
        "fr.txt": "fr",
        "en.txt": "en",
        "zh.txt": "zh",
    }


def test_expansion_speaks_the_language_of_what_it_found(several):
    hits = retrieve(several, "Häuser", 3, retriever="keyword", transform="expand")
    assert hits[0].passage.location.path == "de.txt"
