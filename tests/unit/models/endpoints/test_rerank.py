import pytest

from stillroom.errors import BackendError
from stillroom.models import RerankerModel, open_reranker

TEXTS = ["cats sleep", "dogs bark", "Paris"]


def rank(path, body, headers):
    """Score each document by its length, the shortest last, as servers send them: sorted."""
    rows = [
        {"index": at, "relevance_score": len(text) / 10}
        for at, text in enumerate(body["documents"])
    ]
    return {"results": sorted(rows, key=lambda row: row["relevance_score"])}


def test_scores_come_back_in_the_order_of_the_texts(serve):
    server = serve(rank)
    reader = open_reranker(f"{server.address}#small")
    assert isinstance(reader, RerankerModel)
    assert reader.score("who barks", TEXTS) == [1.0, 0.9, 0.5]
    (request,) = server.requests
    assert reader.score("who barks", []) == []
    assert len(server.requests) == 1
    assert "/v1/rerank" in str(request)
    reader.close()


def test_what_may_pass_is_tried_again(serve):
    said = []

    def answer(path, body, headers):
        said.append(body)
        if len(said) < 2:
            return 503, {"error": "busy"}, {"Retry-After": "0.05"}
        return rank(path, body, headers)

    reader = open_reranker(f"{serve(answer).address}#small")
    assert reader.score("who barks", TEXTS) == [1.0, 0.9, 0.5]
    assert (
        said[0]
        == said[1]
        == {
            "model": "small",
            "query": "who barks",
            "documents": TEXTS,
            "top_n": 3,
            "return_documents": False,
        }
    )
    reader.close()


def test_other_dialects_of_the_answer_are_read(serve):
    rows = [{"index": 1, "score": 2}, {"index": 0, "score": -1.5}, {"index": 2, "score": 0}]
    reader = open_reranker(f"{serve(lambda *_: {'data': rows}).address}#small")
    assert reader.score("x", TEXTS) == [-1.5, 2.0, 0.0]
    reader.close()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"results": []},
        {"results": [{"index": 0, "relevance_score": 1}]},
        {"results": [{"index": at, "relevance_score": "nan"} for at in range(3)]},
        {"results": [{"index": 0, "relevance_score": 1}] * 3},
        {"results": [{"index": at, "relevance_score": 1} for at in (0, 1, 3)]},
        {"results": [{"index": at} for at in range(3)]},
        {"results": [1, 2, 3]},
        {"results": "none"},
    ],
)
def test_an_answer_without_a_score_for_each_text_is_refused(serve, answer):
    reader = open_reranker(f"{serve(lambda *_: answer).address}#small")
    with pytest.raises(BackendError) as caught:
        reader.score("x", TEXTS)
    assert caught.value.code == "backend.answer"
    reader.close()


def test_what_cannot_pass_is_not_tried_again(serve):
    server = serve(lambda *_: (404, {"error": "no such model"}, {}))
    reader = open_reranker(f"{server.address}#small")
    with pytest.raises(BackendError) as caught:
        reader.score("x", TEXTS)
    assert caught.value.code == "backend.not-found"
    assert len(server.requests) == 1
    reader.close()


def test_a_model_must_be_named():
    with pytest.raises(BackendError) as caught:
        open_reranker("http://127.0.0.1:1/v1")
    assert caught.value.code == "backend.which-model"
