import json

import pytest

from stillroom.errors import DataError
from stillroom.rag.interfaces import QUERY_TRANSFORMS, RETRIEVERS, Query
from stillroom.rag.model_calls import drop_duplicate_texts
from stillroom.rag.observability import collect_warnings
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.rag.retrieval.ranking import fuse_reciprocal_ranks
from stillroom.records import Message
from stillroom.testing import scripted_model

ASKING = ("multi_query", "step_back", "decompose")


def answers(*texts):
    return scripted_model(lambda prompt: json.dumps({"queries": list(texts)}))


@pytest.mark.parametrize("name", ASKING)
def test_the_query_comes_first_and_each_text_once(index, name):
    model = answers("Dogs at night", "who  BARKS at strangers", "guards")
    queries = QUERY_TRANSFORMS.build(name).rewrite(Query("who barks at strangers"), index, model)
    assert queries[0] == Query("who barks at strangers")
    texts = [query.text for query in queries]
    assert "Dogs at night" in texts
    assert len({" ".join(text.casefold().split()) for text in texts}) == len(texts)
    (prompt,) = model.asked
    assert "who barks at strangers" in prompt.messages[-1].content
    assert prompt.schema["properties"]["queries"]["maxItems"] >= 1


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize(
    "answer",
    [
        '{"queries": ["...", "1", "2."]}',
        "no JSON at all",
        "{",
        '{"queries": []}',
        '{"queries": [7, null, " "]}',
        '{"queries": "x"}',
        '{"queries": ["a", "b"',
        "[]",
        "",
    ],
)
def test_what_cannot_be_read_falls_back_and_is_said(index, name, answer):
    query = Query("who barks at strangers")
    with collect_warnings() as told:
        queries = QUERY_TRANSFORMS.build(name).rewrite(
            query, index, scripted_model(lambda _: answer)
        )
    assert queries == [query]
    assert len(told) == 1
    assert name in told[0]
    with pytest.warns(UserWarning, match="could not be read"):
        QUERY_TRANSFORMS.build(name).rewrite(query, index, scripted_model(lambda _: answer))


@pytest.mark.parametrize("name", ASKING)
def test_without_a_model_it_is_refused(index, name):
    with pytest.raises(DataError) as caught:
        retrieve(index, "cat", transform=name)
    assert caught.value.code == "rag.no-model"


def test_rewordings_are_fused_by_reciprocal_rank(index):
    model = answers("capital of France", "how long cats sleep")
    found = retrieve(
        index, "who barks", 4, retriever="keyword", transform="multi_query", model=model
    )
    legs = [
        index.search_keyword(Query(text), 4)
        for text in ("who barks", "capital of France", "how long cats sleep")
    ]
    expected = [index.passage_at(row).id for row, _ in fuse_reciprocal_ranks(legs)][:4]
    assert [hit.passage.id for hit in found] == expected


def test_text_around_the_json_is_passed_over(index):
    model = scripted_model(lambda _: 'Sure:\n```json\n{"queries": ["guards"]}\n``` done')
    queries = QUERY_TRANSFORMS.build("step_back").rewrite(Query("who barks"), index, model)
    assert [query.text for query in queries] == ["who barks", "guards"]


def test_the_last_turn_becomes_a_question_that_stands_alone(index):
    history = (Message("user", "What is the capital of France?"), Message("assistant", "Paris."))
    model = answers("How many inhabitants has Paris?")
    (query,) = QUERY_TRANSFORMS.build("last_turn").rewrite(
        Query("How many live there?", history=history), index, model
    )
    assert query == Query("How many inhabitants has Paris?")
    asked = model.asked[0].messages[-1].content
    assert asked.index("capital of France") < asked.index("Paris.") < asked.index("live there")
    hits = retrieve(
        index, Query("How many live there?", history=history), 1, transform="last_turn", model=model
    )
    assert hits[0].passage.location.path == "places/paris.txt"


def test_a_first_turn_asks_no_model(index):
    query = Query("who barks")
    assert QUERY_TRANSFORMS.build("last_turn").rewrite(query, index, None) == [query]
    with pytest.raises(DataError):
        QUERY_TRANSFORMS.build("last_turn").rewrite(
            Query("and cats?", history=(Message("user", "dogs?"),)), index, None
        )


def test_an_unreadable_standalone_question_falls_back(index):
    query = Query("and cats?", history=(Message("user", "Do dogs bark?"),))
    with collect_warnings() as told:
        assert QUERY_TRANSFORMS.build("last_turn").rewrite(
            query, index, scripted_model(lambda _: "?")
        ) == [query]
    assert len(told) == 1


def test_the_first_of_equal_texts_stays():
    assert drop_duplicate_texts(["A  b", "c", "a B", "C"]) == ["A  b", "c"]


def test_retrievers_take_a_query_with_history(index):
    query = Query("cats", history=(Message("user", "x"),))
    assert index.hits(RETRIEVERS.build("hybrid").retrieve(query, 1, index))
