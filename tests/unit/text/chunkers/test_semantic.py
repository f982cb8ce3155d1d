from itertools import pairwise

import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.records import Document
from stillroom.text import CHUNKERS, estimate_tokens

TOPICS = ("cats", "ships", "bread")


def embed(texts):
    """Return how much of each topic a text holds, as a row of length 1."""
    rows = np.array([[0.01 + text.count(topic) for topic in TOPICS] for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write(topic, count):
    return [f"Here is sentence number {at}, which tells of {topic} alone." for at in range(count)]


def make(text):
    return Document("a.txt", "0" * 64, "text/plain", text)


def cut(text, **wanted):
    chunker = CHUNKERS.build({"name": "semantic", **wanted})
    return list(chunker.chunk(make(text), embed=embed))


def reference(rows, percentile):
    """Return the breaks that the published method makes, from the rows of single sentences."""
    distances = [1 - float(one @ other) for one, other in pairwise(rows)]
    limit = np.percentile(distances, percentile)
    return [at + 1 for at, distance in enumerate(distances) if distance > limit]


@pytest.mark.parametrize("buffer", [0, 1])
def test_a_cut_is_made_where_the_topic_turns(buffer):
    sentences = [*write("cats", 6), *write("ships", 7), *write("bread", 5)]
    passages = cut(" ".join(sentences), percentile=85, buffer=buffer)
    assert [sum(topic in one.text for topic in TOPICS) for one in passages] == [1, 1, 1]
    assert [one.text.count("Here") for one in passages] == [6, 7, 5]


def test_the_breaks_are_those_of_the_published_method():
    rng = np.random.default_rng(3)
    names = [f"w{at}" for at in range(40)]
    sentences = [
        f"Sentence {at} holds {' and '.join(rng.choice(names, 9))} in that order."
        for at in range(40)
    ]
    table = {word: rng.normal(size=8) for word in names}

    def embed_words(texts):
        rows = np.array(
            [sum(table[word] for word in text.split() if word in table) for text in texts]
        )
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    chunker = CHUNKERS.build(
        {"name": "semantic", "percentile": 80, "buffer": 1, "min_size": 0, "size": 5000}
    )
    passages = list(chunker.chunk(make(" ".join(sentences)), embed=embed_words))
    windows = [" ".join(sentences[max(at - 1, 0) : at + 2]) for at in range(40)]
    breaks = reference(embed_words(windows).astype(np.float64), 80)
    starts = np.cumsum([one.text.count("Sentence") for one in passages]).tolist()
    assert starts[:-1] == breaks
    assert len(breaks) == 8


def test_sizes_hold_and_small_parts_join_the_nearer_side():
    sentences = [*write("cats", 40), "One of ships.", *write("cats", 3), *write("bread", 40)]
    passages = cut(" ".join(sentences), percentile=90, size=120, min_size=30)
    assert all(estimate_tokens(one.text) <= 120 for one in passages)
    assert all(estimate_tokens(one.text) >= 30 for one in passages)
    assert not any("cats" in one.text and "bread" in one.text for one in passages)


def test_without_vectors_it_is_refused():
    with pytest.raises(DataError) as caught:
        list(CHUNKERS.build("semantic").chunk(make("A text.")))
    assert caught.value.code == "text.no-embedder"


def test_one_sentence_asks_for_no_vector():
    def refuse(texts):
        raise AssertionError(texts)

    passages = list(CHUNKERS.build("semantic").chunk(make("One sentence."), embed=refuse))
    assert [one.text for one in passages] == ["One sentence."]
