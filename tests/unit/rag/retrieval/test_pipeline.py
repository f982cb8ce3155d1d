"""Small passages are found, their parents are read, once each and word for word."""

import json

import pytest

from stillroom.errors import RecipeError
from stillroom.rag import ask
from stillroom.rag.index.searcher import Index
from stillroom.rag.interfaces import QUERY_TRANSFORMS, RERANKERS, RETRIEVERS, Query
from stillroom.rag.retrieval import pipeline
from stillroom.rag.retrieval.pipeline import (
    RetrievalCandidates,
    list_search_steps,
    parse_answer_settings,
    retrieve,
    retrieve_with_parents,
    run_steps,
)
from stillroom.rag.retrieval.ranking import expand_window, merge_into_parents
from stillroom.testing import scripted_model

QUESTION = "how far away must the 7th kettle stand"


@pytest.fixture
def small(build, folder, tmp_path):
    """Open an index of short passages in longer parts."""
    lines = [f"Rule {at}: the {at}th kettle must stand {at} steps away." for at in range(60)]
    (folder / "long.txt").write_text(" ".join(lines), encoding="utf-8")
    build(chunker={"name": "parent_child", "size": 16, "parent_size": 96, "min_size": 4})
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


def test_a_part_is_read_where_a_passage_of_it_is_found(small):
    hits = retrieve(small, QUESTION, 12, retriever="keyword")
    parents = [hit.passage.parent for hit in hits if hit.passage.parent]
    assert len(set(parents)) < len(parents)
    read = merge_into_parents(hits, small)
    check_shown(read, small)
    assert len(read) < len(hits)
    assert (read[0].passage.start, read[0].passage.end) == hits[0].passage.parent
    assert hits[0].passage.text in read[0].passage.text
    assert read[0].score == hits[0].score
    assert merge_into_parents([], small) == []


def test_a_part_is_read_only_where_enough_of_it_is_found(small):
    hits = retrieve(small, QUESTION, 12, retriever="keyword")
    rows = [small.passage_at(row) for row in range(len(small))]
    for share in (0.2, 0.5, 1.0):
        read = merge_into_parents(hits, small, share)
        check_shown(read, small)
        spans = {(one.passage.document_id, one.passage.start, one.passage.end) for one in read}
        for hit in hits:
            one = hit.passage
            same = [
                row
                for row in rows
                if (row.document_id, row.parent) == (one.document_id, one.parent)
            ]
            found = [
                x
                for x in hits
                if (x.passage.document_id, x.passage.parent) == (one.document_id, one.parent)
            ]
            if one.parent and len(found) > share * len(same):
                assert (one.document_id, *one.parent) in spans
            else:
                assert (one.document_id, one.start, one.end) in spans
    assert merge_into_parents(hits, small, 1.0) == hits


def test_as_many_parts_are_read_as_are_asked_for(small):
    read = retrieve_with_parents(small, "the kettle must stand steps away", 3)
    check_shown(read, small)
    assert len(read) == 3
    assert all(hit.passage.parent == (hit.passage.start, hit.passage.end) for hit in read[:2])


def test_an_index_of_parts_is_searched_once(small, monkeypatch):
    depths = []

    def count(index, query, k, **how):
        depths.append(k)
        return retrieve(index, query, k, **how)

    monkeypatch.setattr(pipeline, "retrieve", count)
    assert len(retrieve_with_parents(small, "the kettle must stand steps away", 3)) == 3
    assert depths == [12]


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


@pytest.mark.parametrize("name", ["answering", "unsupported"])
def test_what_a_pipeline_decides_cannot_be_set_beside_it(name):
    value = {"answering": "generate", "unsupported": "drop"}[name]
    with pytest.raises(RecipeError, match=f"pipeline and {name} both set {name}"):
        parse_answer_settings({"pipeline": "convex=>corrective", name: value})
    assert parse_answer_settings({"pipeline": "convex", name: value})[name]


def test_an_index_without_parts_gives_what_it_found(index):
    question = "a cat or a dog at night in Paris"
    assert retrieve_with_parents(index, question, 3) == retrieve(index, question, 3)


def test_an_answer_shows_and_cites_the_part(small):
    model = scripted_model(lambda _: "The 7th kettle must stand 7 steps away [1].")
    answer = ask(small, model, QUESTION, k=2)
    check_shown([hit for hit in answer.hits if hit.rank == 1], small)
    cited = answer.citations[0]
    assert cited.text == answer.hits[0].passage.text
    assert "7th kettle" in cited.text
    assert cited.text.count("kettle must stand") > 3
    alone = ask(small, model, QUESTION, k=2, parent_share=1.0)
    assert alone.hits[0].passage.text in cited.text
    assert len(alone.hits[0].passage.text) < len(cited.text)


def test_neighbours_leave_a_part_as_it_is(small):
    read = retrieve_with_parents(small, QUESTION, 3)
    wide = expand_window(read, small, 1)
    check_shown(wide, small)
    assert wide[0].passage.start <= read[0].passage.start
    assert wide[0].passage.end >= read[0].passage.end


def test_windows_that_overlap_are_one(build, folder, tmp_path):
    lines = [f"Rule {at}: the {at}th kettle must stand {at} steps away." for at in range(60)]
    (folder / "long.txt").write_text(" ".join(lines), encoding="utf-8")
    build(chunker={"name": "sentence_window", "window": 2, "min_size": 4})
    with Index.open(tmp_path / "index") as index:
        hits = retrieve(index, "the 7th kettle, the 9th kettle, the 30th kettle", 8)
        read = merge_into_parents(hits, index)
        check_shown(read, index)
        both = [hit for hit in read if " 7th" in hit.passage.text]
        assert len(both) == 1
        assert " 9th" in both[0].passage.text


def test_the_command_line_says_how_much_of_a_part_must_be_found(small, tmp_path):
    from click.testing import CliRunner

    from stillroom.cli.app import stillroom

    script = tmp_path / "answers.json"
    script.write_text(json.dumps({"*": "The 7th kettle must stand 7 steps away [1]."}))

    def cited(*options):
        asked = ["ask", str(tmp_path / "index"), QUESTION, "--model", f"scripted:{script}"]
        done = CliRunner().invoke(stillroom, [*asked, "--json", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["citations"][0]

    part, alone = cited(), cited("--parent-share", "1")
    assert part["text"].count("kettle must stand") > alone["text"].count("kettle must stand")
    assert alone["text"] in part["text"]
