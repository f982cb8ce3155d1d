import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.models import Embedder, open_embedder

TEXTS = [
    "The river rises in the north and flows to the sea.",
    "Two cups of sugar, one lemon, a pinch of salt.",
    "In 1847 the mill ground 320 sacks of corn.",
    "Это совсем другой текст о мельнице.",
    "!?!",
]


@pytest.fixture(scope="module")
def embedder():
    return open_embedder("static")


def test_rows_are_unit_length_and_independent(embedder):
    assert isinstance(embedder, Embedder)
    rows = embedder.embed(TEXTS, kind="passage")
    assert rows.shape == (5, 1024)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    for text, row in zip(TEXTS, rows, strict=True):
        assert embedder.embed([text], kind="query")[0].tobytes() == row.tobytes()


@pytest.mark.parametrize(
    ("query", "best"), [("Where does the river flow?", 0), ("How much sugar?", 1), ("1847", 2)]
)
def test_texts_that_share_words_are_near(embedder, query, best):
    rows = embedder.embed(TEXTS, kind="passage")
    assert int((rows @ embedder.embed([query], kind="query")[0]).argmax()) == best


def test_word_forms_are_near(embedder):
    a, b, c = embedder.embed(["configuration", "configurations", "watermelon"], kind="query")
    assert a @ b > 0.3 > abs(a @ c)


def test_dimensions_are_a_setting_and_part_of_the_fingerprint(embedder):
    small = open_embedder("static", dimensions=128)
    assert small.embed(["mill"], kind="query").shape == (1, 128)
    assert small.fingerprint != embedder.fingerprint


def test_long_texts_are_cut_and_counted():
    embedder = open_embedder("static")
    embedder.embed(["mill " * 9000, "mill"], kind="passage")
    assert embedder.truncated == 1


def test_empty_texts_are_refused(embedder):
    with pytest.raises(DataError):
        embedder.embed(["\n"], kind="passage")
    assert embedder.embed([], kind="query").shape == (0, 1024)
