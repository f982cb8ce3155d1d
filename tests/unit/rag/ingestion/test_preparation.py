"""Passages are never longer than what the embedder reads, and what goes before them fits too."""

import json

import numpy as np
import pytest

from stillroom.errors import DataError, RecipeError
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.models.encoders.text_encoder import get_max_text_tokens
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.rag.types import build_embedding_texts, list_keyword_prefixes
from stillroom.recipes import parse_recipe
from stillroom.records import Document, Location, Passage
from stillroom.text import CHUNKERS


class Short:
    """Hashed words, but the embedder reads few of them; remembers what it is given."""

    def __init__(self, max_tokens):
        self.inner = open_embedder("static")
        self.dimensions = self.inner.dimensions
        self.fingerprint = f"short:{max_tokens}"
        self.max_tokens = max_tokens
        self.truncated = 0
        self.texts = []

    def count_tokens(self, text):
        return self.inner.count_tokens(text)

    def embed(self, texts, *, kind):
        self.texts += texts
        self.truncated += sum(self.count_tokens(text) > self.max_tokens - 2 for text in texts)
        return self.inner.embed(texts, kind=kind)


@pytest.fixture
def words(tmp_path):
    (tmp_path / "documents").mkdir()
    text = "# Guide\n\n" + " ".join(f"Word {number} of many." for number in range(400))
    (tmp_path / "documents/guide.md").write_text(text)
    return tmp_path


def build(place, embedder, **settings):
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static", **settings)
    said = []
    job = Job.start(place / "index", "recipe\n", overwrite=True)
    job.say = said.append
    try:
        return run(recipe, job, embedder=embedder), said
    finally:
        job.close()


@pytest.mark.parametrize("name", CHUNKERS.names())
def test_a_size_above_what_the_embedder_reads_is_lowered_and_that_is_said(words, name):
    embedder = Short(66)
    artifact, said = build(words, embedder, chunker={"name": name, "size": 300})
    assert artifact.details["truncated"] == embedder.truncated == 0
    assert max(map(embedder.count_tokens, embedder.texts)) <= 64
    assert any("300" in line and "64" in line for line in said)
    with Index.open(words / "index", embedder=embedder) as index:
        assert index.description.settings["chunker"]["size"] == 64


def test_a_size_that_fits_is_left_and_nothing_is_said(words):
    artifact, said = build(words, Short(66), chunker={"name": "recursive", "size": 64})
    assert artifact.details["truncated"] == 0
    assert said == []


def test_an_embedder_that_reads_almost_nothing_is_refused(words):
    with pytest.raises(DataError) as caught:
        build(words, Short(5))
    assert caught.value.code == "rag.embedder-too-short"


PASSAGE = Passage(
    "doc",
    10,
    30,
    "| seven | eight |",
    Location("a.md", "0", 10, 30),
    headings=("Table of numbers",),
    title="Numbers",
    table_header="| small | large |",
    context="Pairs of numbers from the report.",
)


def test_what_goes_before_a_passage_gives_way_from_the_outside():
    def text(max_tokens, **settings):
        return build_embedding_texts([PASSAGE], Short(max_tokens), **settings)[0]

    whole = (
        "Numbers > Table of numbers\nPairs of numbers from the report.\n"
        "| small | large |\n| seven | eight |"
    )
    assert text(100, with_headings=True) == whole
    assert text(15, with_headings=True) == whole.removeprefix("Numbers > ")
    assert text(12, with_headings=True) == whole.split("\n", 1)[1]
    assert text(100, with_headings=False) == whole.split("\n", 1)[1]
    assert text(8, with_headings=True) == "| small | large |\n| seven | eight |"
    assert text(5, with_headings=True) == "| seven | eight |"


def test_a_passage_keeps_what_it_is_found_by_through_json():
    told = json.loads(json.dumps(PASSAGE.to_json()))
    assert Passage.from_json(told) == PASSAGE
    assert list_keyword_prefixes(told)[-2:] == [PASSAGE.table_header, PASSAGE.context]
    plain = Passage("doc", 10, 30, PASSAGE.text, PASSAGE.location)
    assert PASSAGE.id == plain.id
    assert not {"table_header", "context"} & plain.to_json().keys()
    assert Passage.from_json(plain.to_json()) == plain
    assert list_keyword_prefixes(plain.to_json()) == [""]


def test_a_term_counts_as_a_heading_of_its_definition():
    text = "-q\n\n--quiet\n\nPrints nothing but errors.\n\nSee also the log.\n\nEXIT STATUS"
    passage = Passage("doc", 10, 30, text, PASSAGE.location, headings=("Options",), title="cat")
    assert list_keyword_prefixes(passage.to_json()) == ["cat", "Options", "", "-q\n\n--quiet"]


def test_the_static_embedder_has_room_for_every_default():
    embedder = open_embedder("static")
    document = Document("a", "0", "text/plain", "word " * 9000)
    recipe = IndexRecipe(documents=".", embedder="static")
    passages = list(recipe.chunker.chunk(document, count=embedder.count_tokens))
    assert get_max_text_tokens(embedder) > recipe.chunker.size
    assert np.isfinite(embedder.embed([one.text for one in passages], kind="passage")).all()
    assert embedder.truncated == 0


def test_settings_of_the_chunker_alone_are_those_of_the_default():
    recipe = parse_recipe(
        "version: 1\nkind: rag.index\ndocuments: .\n", "recipe", ("chunker.size=90",)
    )
    assert recipe.chunker == CHUNKERS.build({"name": "heading", "size": 90})
    named = parse_recipe(
        "version: 1\nkind: rag.index\ndocuments: .\nchunker: sentence\n", "recipe", ("seed=1",)
    )
    assert named.chunker == CHUNKERS.build("sentence")
    with pytest.raises(RecipeError, match="did you mean 'size'"):
        parse_recipe("version: 1\nkind: rag.index\ndocuments: .\n", "recipe", ("chunker.siez=90",))
