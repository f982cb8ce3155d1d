import math
from collections import Counter

import pytest

from stillroom.rag.lexicon import Lexicon, build_lexicon

TEXTS = ["a b b c", "b c c c d", "d d e", "e", "a a a a a a b"]


def make(path, tmp_path, texts=TEXTS):
    rows = [
        (f"id{at}", ["head"] if at == 2 else [], text.split(), int(at == 2), len(text.split()))
        for at, text in enumerate(texts)
    ]
    return build_lexicon(path, rows, tmp_path)


def test_two_builds_are_the_same_bytes(tmp_path):
    texts = [" ".join(f"t{(at * step) % 97}" for step in range(1, 60)) for at in range(300)]
    assert make(tmp_path / "one.sqlite", tmp_path, texts) == 300
    make(tmp_path / "two.sqlite", tmp_path, texts)
    assert (tmp_path / "one.sqlite").read_bytes() == (tmp_path / "two.sqlite").read_bytes()


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (0.0, 0.0), (2.0, 1.0)])
def test_scores_are_bm25_with_lucenes_idf(tmp_path, k1, b):
    make(tmp_path / "l.sqlite", tmp_path)
    lexicon = Lexicon(tmp_path / "l.sqlite")
    rows, scores = lexicon.score({"b": 1.0, "d": 2.0}, k1=k1, b=b, heading_weight=0.0)
    lexicon.close()
    words = [text.split() for text in TEXTS]
    mean = sum(map(len, words)) / len(words)
    expected = {}
    for at, held in enumerate(words):
        total = 0.0
        for term, weight in {"b": 1.0, "d": 2.0}.items():
            having = sum(term in other for other in words)
            idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
            count = Counter(held)[term]
            if count:
                total += weight * idf * count / (count + k1 * (1 - b + b * len(held) / mean))
        if total:
            expected[at] = total
    assert rows.tolist() == sorted(expected)
    assert scores.tolist() == pytest.approx([expected[row] for row in sorted(expected)])


def test_a_heading_counts_as_weighted_words(tmp_path):
    make(tmp_path / "l.sqlite", tmp_path)
    lexicon = Lexicon(tmp_path / "l.sqlite")
    found = [
        lexicon.score({"head": 1.0}, k1=1.2, b=0.75, heading_weight=weight)
        for weight in (0.0, 1.0, 3.0)
    ]
    lexicon.close()
    assert found[0][0].tolist() == []
    assert found[1][0].tolist() == found[2][0].tolist() == [2]
    assert found[2][1][0] > found[1][1][0]


def test_unknown_terms_score_nothing(tmp_path):
    make(tmp_path / "l.sqlite", tmp_path)
    lexicon = Lexicon(tmp_path / "l.sqlite")
    rows, _ = lexicon.score({'"': 1.0, "AND": 1.0, "zzz": 1.0}, k1=1, b=1, heading_weight=1)
    assert rows.tolist() == []
    assert lexicon.row_of("id3") == 3
    assert lexicon.row_of("id9") is None
    lexicon.close()


def test_an_empty_lexicon_can_be_searched(tmp_path):
    assert make(tmp_path / "l.sqlite", tmp_path, []) == 0
    lexicon = Lexicon(tmp_path / "l.sqlite")
    assert lexicon.score({"a": 1.0}, k1=1, b=1, heading_weight=1)[0].tolist() == []
    lexicon.close()
