import json
import re

import pytest

from stillroom.errors import DataError
from stillroom.rag.interfaces import RERANKERS, RETRIEVERS, Query
from stillroom.rag.observability import collect_warnings
from stillroom.testing import scripted_model

QUERY = Query("a cat or a dog at night in the house of Paris 17 3.11.7")


@pytest.fixture
def hits(index):
    return index.hits(RETRIEVERS.build("hybrid").retrieve(QUERY, 6, index))


def order(*numbers):
    return scripted_model(lambda _: json.dumps({"order": list(numbers)}))


def by_length(prompt):
    """Order the passages of a prompt by how long they are, longest first."""
    shown = re.findall(r"^\((\d+)\) (.*)$", prompt.messages[-1].content, re.MULTILINE)
    places = sorted(shown, key=lambda pair: -len(pair[1]))
    return json.dumps({"order": [int(number) for number, _ in places]})


def test_windows_from_the_end_carry_the_best_to_the_front(index, hits):
    method = RERANKERS.build({"name": "listwise", "window": 3, "step": 1})
    model = scripted_model(by_length)
    again = method.rerank(QUERY, hits, index, model)
    assert len(model.asked) == len(hits) - 2
    longest = sorted(hits, key=lambda hit: -len(" ".join(hit.passage.text.split())))
    assert [hit.passage.id for hit in again[:2]] == [hit.passage.id for hit in longest[:2]]
    assert {hit.passage.id for hit in again} == {hit.passage.id for hit in hits}


def test_one_window_is_the_models_order(index, hits):
    numbers = list(range(len(hits), 0, -1))
    again = RERANKERS.build("listwise").rerank(QUERY, hits, index, order(*numbers))
    assert [hit.passage.id for hit in again] == [hit.passage.id for hit in hits][::-1]
    assert [hit.score for hit in again] == sorted((hit.score for hit in again), reverse=True)


@pytest.mark.parametrize(
    "answer",
    ['{"order": [2, 2, 99, 0, -1, "3", true, null]}', "{", "nothing", '{"order": 2}', "[2]"],
)
def test_every_answer_gives_a_permutation_and_repairs_are_said(index, hits, answer):
    with collect_warnings() as told:
        again = RERANKERS.build("listwise").rerank(
            QUERY, hits, index, scripted_model(lambda _: answer)
        )
    assert {hit.passage.id for hit in again} == {hit.passage.id for hit in hits}
    assert len(told) == 1
    rest = [hit.passage.id for hit in again if hit.passage.id != hits[1].passage.id]
    assert rest == [hit.passage.id for at, hit in enumerate(hits) if at != 1]


def test_the_schema_wants_each_number(index, hits):
    model = order(*range(1, len(hits) + 1))
    RERANKERS.build("listwise").rerank(QUERY, hits, index, model)
    wanted = model.asked[0].schema["properties"]["order"]
    assert wanted["minItems"] == wanted["maxItems"] == len(hits)
    assert wanted["items"]["enum"] == list(range(1, len(hits) + 1))


def test_little_to_order_asks_nothing(index, hits):
    model = scripted_model([])
    method = RERANKERS.build("listwise")
    assert method.rerank(QUERY, [], index, model) == []
    assert [hit.passage.id for hit in method.rerank(QUERY, hits[:1], index, model)] == [
        hits[0].passage.id
    ]
    assert model.asked == []


def test_a_model_is_needed(index, hits):
    with pytest.raises(DataError) as caught:
        RERANKERS.build("listwise").rerank(QUERY, hits, index)
    assert caught.value.code == "rag.no-model"
