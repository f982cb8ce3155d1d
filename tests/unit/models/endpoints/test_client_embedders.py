import numpy as np
import pytest

from stillroom.errors import BackendError, DataError
from stillroom.models import Embedder, open_embedder


def rows(body):
    return [
        {"index": number, "embedding": [float(len(text)), 1.0]}
        for number, text in enumerate(body["input"])
    ]


@pytest.fixture
def embed(serve):
    opened = []

    def start(answer, **settings):
        server = serve(answer)
        opened.append(open_embedder(f"{server.address}#e", **settings))
        return opened[-1], server

    yield start
    for embedder in opened:
        embedder.close()


def test_rows_are_unit_length_and_in_order_whatever_order_they_come_in(embed):
    embedder, server = embed(
        lambda path, body, headers: {"data": rows(body)[::-1]}, batch_size=2, query_prompt="Q: "
    )
    vectors = embedder.embed(["a", "bb", "ccc"], kind="passage")
    assert isinstance(embedder, Embedder)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert (np.diff(vectors[:, 0]) > 0).all()
    embedder.embed(["a"], kind="query")
    assert server.requests[-1][1]["input"] == ["Q: a"]
    assert embedder.embed([], kind="query").shape == (0, 2)


def test_long_texts_are_cut_and_counted(embed):
    embedder, server = embed(lambda path, body, headers: {"data": rows(body)}, max_tokens=8)
    embedder.embed(["x" * 100, "short"], kind="passage")
    assert embedder.truncated == 1
    assert len(server.requests[-1][1]["input"][0]) == 32


@pytest.mark.parametrize(
    "bad", [{"data": []}, {"data": [{"embedding": [1]}]}, {"nothing": 1}, {"data": 3}]
)
def test_unusable_answers_are_named(embed, bad):
    with pytest.raises(BackendError) as caught:
        embed(lambda path, body, headers: bad)
    assert caught.value.code == "backend.answer"


def test_zero_vectors_and_empty_texts_are_refused(embed):
    embedder, _ = embed(
        lambda path, body, headers: {
            "data": [{"index": 0, "embedding": [0.0 if body["input"] == ["zero"] else 1.0]}]
        }
    )
    with pytest.raises(DataError) as caught:
        embedder.embed(["zero"], kind="passage")
    assert caught.value.code == "data.bad-vector"
    with pytest.raises(DataError) as caught:
        embedder.embed(["a", " \n"], kind="passage")
    assert caught.value.code == "data.empty-text"


def test_a_name_is_needed(serve):
    with pytest.raises(BackendError) as caught:
        open_embedder("http://127.0.0.1:1/v1")
    assert caught.value.code == "backend.which-model"
