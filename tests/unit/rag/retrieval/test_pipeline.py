"""Retrieval is a list of steps; neighbors are shown once each and word for word."""

import pytest

from stillroom.errors import RecipeError
from stillroom.rag.evaluation.retrieval import search_query
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import (
    QUERY_TRANSFORMS,
    RERANKERS,
    RETRIEVERS,
    PassageReranker,
    Query,
)
from stillroom.rag.observability import add_warning, collect_warnings
from stillroom.rag.retrieval.pipeline import (
    RetrievalCandidates,
    RetrievalPipeline,
    list_search_steps,
    parse_answer_settings,
    retrieve,
    run_steps,
)
from stillroom.rag.retrieval.ranking import expand_window

QUESTION = "how far away must the 7th kettle stand"


@pytest.fixture
def small(build, folder, tmp_path):
    """Open an index of short passages."""
    lines = [f"Rule {at}: the {at}th kettle must stand {at} steps away." for at in range(60)]
    (folder / "long.txt").write_text(" ".join(lines), encoding="utf-8")
    build(chunker={"name": "recursive", "size": 16, "min_size": 4})
    with Index.open(tmp_path / "index") as opened:
        yield opened


def check_shown(hits, index):
    """Hold every hit against its document, and no two against each other."""
    seen = set()
    for rank, hit in enumerate(hits, 1):
        passage = hit.passage
        document = index.document(passage.document_id)
        assert hit.rank == rank
        assert document.text[passage.start : passage.end] == passage.text
        assert document.locate(passage.start, passage.end) == passage.location
        places = {(passage.document_id, at) for at in range(passage.start, passage.end)}
        assert not places & seen
        seen |= places


def test_retrieval_is_its_list_of_steps(index):
    methods = RETRIEVERS.build("hybrid"), RERANKERS.build("mmr")
    steps = list_search_steps(*methods, QUERY_TRANSFORMS.build("expand"), k=2, model=None)
    query = Query("which animal barks at night")
    candidates = run_steps(steps, RetrievalCandidates(index, (query,)))
    found = retrieve(index, query, 2, retriever="hybrid", reranker="mmr", transform="expand")
    assert candidates.hits == found
    assert list(candidates.counts) == [
        "match_clauses",
        "transform_query",
        "search_index",
        "fuse_rankings",
        "rerank_hits",
        "truncate_hits",
    ]
    assert candidates.counts["rerank_hits"] > candidates.counts["truncate_hits"] == 2


def test_a_step_without_a_method_is_no_step(index):
    steps = list_search_steps(RETRIEVERS.build("keyword"), None, None, k=3, model=None)
    counts = run_steps(steps, RetrievalCandidates(index, (Query("cat"),))).counts
    assert list(counts) == ["match_clauses", "search_index", "fuse_rankings", "truncate_hits"]


class Counting(PassageReranker):
    """Counts the hits that it is given, of which it reads the first ``depth``."""

    depth: int

    def rerank(self, query, hits, index, model=None):
        add_warning(f"given {len(hits)}")
        return list(hits)


@pytest.mark.parametrize(("depth", "given"), [(20, 50), (55, 55)])
def test_a_reranker_is_given_as_many_hits_as_it_reads(small, depth, given):
    reranker = Counting(depth=depth)
    with collect_warnings() as told:
        found = retrieve(small, QUESTION, 3, retriever="keyword", reranker=reranker)
    assert (len(found), *told) == (3, f"given {given}")
    pipeline = RetrievalPipeline("x", RETRIEVERS.build("keyword"), reranker)
    measured = search_query(small, pipeline, QUESTION, unit="passage", depth=3)
    assert measured.ranked == tuple(hit.passage.id for hit in found)
    assert measured.notices == (f"given {given}",)


@pytest.mark.parametrize("name", ["answering", "unsupported"])
def test_what_a_pipeline_decides_cannot_be_set_beside_it(name):
    value = {"answering": "generate", "unsupported": "drop"}[name]
    with pytest.raises(RecipeError, match=f"pipeline and {name} both set {name}"):
        parse_answer_settings({"pipeline": "convex=>corrective", name: value})
    assert parse_answer_settings({"pipeline": "convex", name: value})[name]


def test_neighbours_are_merged_and_read_word_for_word(small):
    found = retrieve(small, QUESTION, 3, retriever="keyword")
    wide = expand_window(found, small, 2)
    check_shown(wide, small)
    assert found[0].passage.text in wide[0].passage.text
    assert wide[0].passage.text.count("kettle must stand") > 3
    assert (wide[0].score, wide[0].rank) == (found[0].score, 1)
    again = expand_window(wide, small, 2)  # what is wide already stays as it is
    assert [hit.passage for hit in again] == [hit.passage for hit in wide]
