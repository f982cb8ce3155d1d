"""The rerankers whose models are opened by name: they order by what the model says."""

import pytest

from stillroom.errors import RecipeError
from stillroom.rag import model_calls
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import RERANKERS, RETRIEVERS, Query
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.types import get_text_with_headings

QUERY = Query("a cat or a dog at night in the house of Paris")
METHODS = [
    {"name": "cross_encoder", "checkpoint": "some-folder"},
    {"name": "endpoint", "address": "http://127.0.0.1:9/v1#small"},
]


class Reader:
    def __init__(self):
        self.read = []

    def score(self, query, texts):
        self.read += texts
        return [float(len(text)) for text in texts]


@pytest.mark.parametrize("settings", METHODS, ids=[one["name"] for one in METHODS])
def test_hits_are_ordered_by_the_models_scores(index, monkeypatch, settings):
    reader = Reader()
    monkeypatch.setattr(model_calls, "_open_model", lambda *_: reader)
    hits = index.hits(RETRIEVERS.build("hybrid").retrieve(QUERY, 6, index))
    method = RERANKERS.build({**settings, "depth": 3})
    again = method.rerank(QUERY, hits, index)
    assert reader.read == [get_text_with_headings(hit.passage) for hit in hits[:3]]
    lengths = [len(get_text_with_headings(hit.passage)) for hit in again[:3]]
    assert lengths == sorted(lengths, reverse=True)
    assert [hit.passage.id for hit in again[3:]] == [hit.passage.id for hit in hits[3:]]
    assert method.rerank(QUERY, [], index) == []


@pytest.mark.parametrize("settings", METHODS, ids=[one["name"] for one in METHODS])
def test_a_row_of_a_table_is_read_with_its_header_under_its_headings(
    build, folder, tmp_path, monkeypatch, settings
):
    rows = "".join(f"| part {number} | {number} |\n" for number in range(60))
    table = f"# Stock\n\n## Pumps\n\n| name | shelf |\n|---|---|\n{rows}"
    (folder / "stock.md").write_text(table)
    build(chunker={"name": "recursive", "size": 60})
    reader = Reader()
    monkeypatch.setattr(model_calls, "_open_model", lambda *_: reader)
    with Index.open(tmp_path / "index") as index:
        hits = retrieve(index, "part 40", 1, retriever="keyword")
        RERANKERS.build(settings).rerank(Query("part 40"), hits, index)
    assert "part 40" in hits[0].passage.text
    (read,) = reader.read
    assert read.startswith("Stock > Pumps\n| name | shelf |\n")
    assert read.endswith(hits[0].passage.text)


def test_a_model_must_be_named():
    with pytest.raises((RecipeError, ValueError), match="checkpoint"):
        RERANKERS.build("cross_encoder")
    with pytest.raises((RecipeError, ValueError), match="address"):
        RERANKERS.build({"name": "endpoint", "address": "ftp://host"})
