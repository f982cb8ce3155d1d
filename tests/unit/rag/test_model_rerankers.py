"""The rerankers whose models are opened by name: they order by what the model says."""

import pytest

from stillroom.errors import RecipeError
from stillroom.rag import readers
from stillroom.rag.method import RERANKERS, RETRIEVERS, Query

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
    monkeypatch.setattr(readers, "_open", lambda reference, settings: reader)
    hits = RETRIEVERS.build("hybrid").retrieve(QUERY, 6, index)
    method = RERANKERS.build({**settings, "depth": 3})
    again = method.rerank(QUERY, hits, index)
    assert reader.read == [hit.passage.text for hit in hits[:3]]
    lengths = [len(hit.passage.text) for hit in again[:3]]
    assert lengths == sorted(lengths, reverse=True)
    assert [hit.passage.id for hit in again[3:]] == [hit.passage.id for hit in hits[3:]]
    assert method.rerank(QUERY, [], index) == []


def test_a_model_must_be_named():
    with pytest.raises((RecipeError, ValueError), match="checkpoint"):
        RERANKERS.build("cross_encoder")
    with pytest.raises((RecipeError, ValueError), match="address"):
        RERANKERS.build({"name": "endpoint", "address": "ftp://host"})
