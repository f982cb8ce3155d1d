import numpy as np
import pytest

from stillroom.rag.interfaces import RERANKERS, RETRIEVERS, Query
from stillroom.rag.retrieval.pipeline import retrieve

QUERY = Query("a cat or a dog at night in the house of Paris")


def reference(wanted, vectors, balance):
    """Choose one by one by the paper's formula."""
    left, chosen = list(range(len(wanted))), []
    while left:

        def value(at):
            nearest = max((float(vectors[at] @ vectors[s]) for s in chosen), default=0.0)
            return balance * wanted[at] - (1 - balance) * nearest

        best = max(left, key=value)
        left.remove(best)
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("relevance", ["retrieved", "vectors"])
def test_it_chooses_as_the_paper_does(index, balance, relevance):
    hits = index.hits(RETRIEVERS.build("hybrid").retrieve(QUERY, 6, index))
    method = RERANKERS.build({"name": "mmr", "balance": balance, "relevance": relevance})
    again = method.rerank(QUERY, hits, index)
    vectors = index.vectors_of([index.row_of(hit.passage.id) for hit in hits]).astype(float)
    if relevance == "vectors":
        wanted = vectors @ index.embed_query(QUERY)
    else:
        scores = np.array([hit.score for hit in hits])
        wanted = (scores - scores.min()) / (scores.max() - scores.min())
    expected = [hits[at].passage.id for at in reference(wanted, vectors, balance)]
    assert [hit.passage.id for hit in again] == expected
    assert [hit.score for hit in again] == sorted((hit.score for hit in again), reverse=True)


def test_relevance_alone_keeps_the_order(index):
    hits = index.hits(RETRIEVERS.build("hybrid").retrieve(QUERY, 6, index))
    again = RERANKERS.build({"name": "mmr", "balance": 1}).rerank(QUERY, hits, index)
    assert [hit.passage.id for hit in again] == [hit.passage.id for hit in hits]


def test_a_copy_comes_last(build, folder, tmp_path):
    from stillroom.rag.index.searcher import Index

    for name in ("one", "two"):
        (folder / f"{name}.txt").write_text(f"The kettle boils water for tea. Note {name}.")
    (folder / "three.txt").write_text("A kettle of copper stands in the museum of the town.")
    build()
    with Index.open(tmp_path / "index") as index:
        hits = retrieve(index, "kettle boils water", 3, retriever="dense")
        again = RERANKERS.build({"name": "mmr", "balance": 0.3}).rerank(
            Query("kettle boils water"), hits, index
        )
    assert {hit.passage.location.path for hit in hits[:2]} == {"one.txt", "two.txt"}
    assert again[2].passage.location.path in {"one.txt", "two.txt"}
