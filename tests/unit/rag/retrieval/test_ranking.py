import json

import pytest

from stillroom.errors import DataError
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.retrieval.ranking import (
    expand_window,
    limit_per_document,
    reorder_lost_in_the_middle,
    sort_hits,
)


@pytest.fixture
def pieces(build, folder, tmp_path):
    """Open an index in which one document has many passages."""
    lines = [f"Rule {at}.  The {at}th kettle must stand {at} steps away." for at in range(40)]
    (folder / "long.txt").write_text("\n\n".join(lines), encoding="utf-8")
    build(chunker={"name": "sentence", "size": 24, "overlap": 0})
    with Index.open(tmp_path / "index") as opened:
        yield opened


def test_the_best_stand_at_both_ends(index):
    hits = retrieve(index, "a cat or a dog at night in Paris", 5)
    assert [hit.rank for hit in reorder_lost_in_the_middle(hits)] == [1, 3, 5, 4, 2][: len(hits)]
    assert reorder_lost_in_the_middle([]) == []


def test_new_scores_order_and_the_unread_follow(index):
    hits = retrieve(index, "a cat or a dog at night in Paris", 4)
    again = sort_hits(hits, [1.0, 3.0, 3.0])
    assert [hit.passage.id for hit in again] == [hits[at].passage.id for at in (1, 2, 0, 3)]
    assert [hit.score for hit in again] == [3.0, 3.0, 1.0, 0.0]
    assert [hit.rank for hit in again] == [1, 2, 3, 4]


def test_a_document_gives_no_more_than_the_cap(pieces):
    hits = retrieve(pieces, "the kettle must stand away from the cat", 10)
    capped = limit_per_document(hits, 2)
    paths = [hit.passage.location.path for hit in capped]
    assert paths.count("long.txt") == 2
    assert capped == [hit for hit in hits if hit in capped]
    assert limit_per_document(hits, 0) == hits


@pytest.mark.parametrize("window", [1, 2, 50])
def test_joined_text_is_the_documents_own(pieces, folder, window):
    hits = retrieve(pieces, "the 7th kettle, the 8th kettle, the 30th kettle", 6)
    joined = expand_window(hits, pieces, window)
    seen = set()
    for hit in joined:
        passage = hit.passage
        document = pieces.document(passage.document_id)
        assert document.text[passage.start : passage.end] == passage.text
        source = (folder / passage.location.path).read_bytes()
        place = passage.location
        assert source[place.byte_start : place.byte_end].decode() == passage.text
        places = {(passage.document_id, at) for at in range(passage.start, passage.end)}
        assert not places & seen
        seen |= places
    for hit in hits:
        assert (hit.passage.document_id, hit.passage.start) in seen
    assert joined[0].passage.start <= hits[0].passage.start < joined[0].passage.end
    assert [hit.rank for hit in joined] == list(range(1, len(joined) + 1))


def test_a_wide_window_gives_the_whole_document_once(pieces):
    hits = retrieve(pieces, "the 7th kettle must stand", 6, retriever="keyword")
    joined = [
        h
        for h in expand_window(hits, pieces, 500)
        if h.passage.title == "long.txt" or h.passage.location.path == "long.txt"
    ]
    assert len(joined) == 1
    rows = [pieces.passage_at(row) for row in range(len(pieces))]
    own = [one for one in rows if one.location.path == "long.txt"]
    assert len(own) > 10
    assert (joined[0].passage.start, joined[0].passage.end) == (own[0].start, own[-1].end)


def test_no_window_changes_nothing(pieces):
    hits = retrieve(pieces, "kettle", 3)
    assert expand_window(hits, pieces, 0) == hits


def test_a_document_is_found_by_the_id_of_its_passages(index):
    for row in range(len(index)):
        passage = index.passage_at(row)
        document = index.document(passage.document_id)
        assert document.path == passage.location.path
        json.dumps(document.to_json())
    with pytest.raises(DataError) as caught:
        index.document("doc-none")
    assert caught.value.code == "rag.no-such-document"


def test_an_answer_shows_what_was_joined_capped_and_left_out(pieces):
    from stillroom.rag import ask
    from stillroom.testing import scripted_model

    model = scripted_model(lambda _: "The 7th kettle must stand 7 steps away [1].")
    question = "how far away must the 7th kettle stand"
    plain = ask(pieces, model, question, k=3, answering="generate")
    joined = {"neighbours": 1, "per_document": 1, "best_at_ends": True}
    wide = ask(pieces, model, question, k=3, answering="generate", **joined)
    assert wide.details["left_out"] == plain.details["left_out"] == []
    assert wide.details["notices"] == []
    documents = [hit.passage.document_id for hit in wide.hits]
    assert len(set(documents)) == len(documents)
    assert plain.hits[0].passage.text in wide.hits[0].passage.text
    assert len(wide.hits[0].passage.text) > len(plain.hits[0].passage.text)
    assert wide.citations[0].location == wide.hits[0].passage.location


def test_an_answer_says_what_a_transform_could_not_read(index):
    from stillroom.rag import ask
    from stillroom.testing import scripted_model

    answer = ask(index, scripted_model(lambda _: "Cats sleep."), "how long", transform="step_back")
    assert any("step_back" in text for text in answer.details["notices"])
