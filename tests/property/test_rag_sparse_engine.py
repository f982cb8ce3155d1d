"""The sparse engine against dot products of dictionaries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import IntegrityError
from stillroom.rag.search_engines.sparse import (
    WEIGHTS,
    SparseEngine,
    TermWeights,
    merge_term_weights,
)

WORDS = [f"w{at}" for at in range(9)]
weights = st.sampled_from([0.0, -1.0, 0.25, 0.5, 1.0, 1.5, 0.1])
passages = st.lists(st.dictionaries(st.sampled_from(WORDS), weights, max_size=5), max_size=20)


def write(folder, rows):
    merge_term_weights(folder, [(TermWeights.of(rows), None)])


def open_parts(folder, parts):
    opened = []
    for at, part in enumerate(parts):
        (folder / str(at)).mkdir()
        write(folder / str(at), part)
        opened.append(TermWeights.open(folder / str(at)))
        assert len(opened[-1]) == len(part)
    return opened


@given(passages, st.dictionaries(st.sampled_from(WORDS), weights), st.data())
@settings(max_examples=60, deadline=None)
def test_the_best_rows_are_those_of_all_dot_products(tmp_path_factory, told, query, data):
    count = len(told)
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    alive, mask = data.draw(flags), data.draw(st.none() | flags)
    cut = data.draw(st.integers(0, count))
    k = data.draw(st.integers(1, 8))
    parts = open_parts(tmp_path_factory.mktemp("sparse"), [told[:cut], told[cut:]])
    flags_given = None if mask is None else np.array(mask, dtype=bool)
    engine = SparseEngine(parts, np.array(alive, dtype=bool))
    rows, scores = engine.search(query, k, mask=flags_given)
    expected = {}
    for at, passage in enumerate(told):
        total = sum(
            max(query.get(term, 0.0), 0.0) * max(float(np.float32(weight)), 0.0)
            for term, weight in passage.items()
        )
        if total > 0 and alive[at] and (mask is None or mask[at]):
            expected[at] = total
    assert len(rows) == min(k, len(expected))
    assert scores.tolist() == pytest.approx([expected[row] for row in rows.tolist()], rel=1e-12)
    worst = scores[-1] if len(scores) else 0.0
    assert all(value <= worst + 1e-9 for row, value in expected.items() if row not in set(rows))
    assert list(zip(-scores, rows, strict=True)) == sorted(zip(-scores, rows, strict=True))


def test_the_order_of_a_passages_terms_leaves_the_bytes(tmp_path):
    one = [{"b": 1.0, "a": 0.5}, {}, {"c": 2.0, "a": 1.0}]
    other = [dict(reversed(passage.items())) for passage in one]
    open_parts(tmp_path, [one, other])
    files = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("0", "1")]
    assert files[0] == files[1]


def test_no_passages_and_unknown_terms_find_nothing(tmp_path):
    nothing, some = open_parts(tmp_path, [[], [{}, {"a": 1.0}]])
    assert (len(nothing), len(some)) == (0, 2)
    assert SparseEngine([nothing]).search({"a": 1.0}, 3)[0].tolist() == []
    engine = SparseEngine([nothing, some])
    assert engine.search({"b": 1.0}, 3)[0].tolist() == []
    assert engine.search({"a": 1.0, "b": 1.0}, 3)[0].tolist() == [1]


def test_a_damaged_file_is_named(tmp_path):
    open_parts(tmp_path, [[{"a": 1.0}]])
    path = tmp_path / "0" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError) as caught:
        TermWeights.open(tmp_path / "0")
    assert caught.value.code == "rag.index-damaged"


@given(st.lists(passages, min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_merged_files_have_the_bytes_of_one(tmp_path_factory, told, data):
    folder = tmp_path_factory.mktemp("merge")
    parts = open_parts(folder, told)
    kept = [
        data.draw(st.none() | st.lists(st.booleans(), min_size=len(one), max_size=len(one)))
        for one in told
    ]
    masks = [None if mask is None else np.array(mask, dtype=bool) for mask in kept]
    rows = [
        row
        for one, mask in zip(told, kept, strict=True)
        for at, row in enumerate(one)
        if mask is None or mask[at]
    ]
    for name in ("merged", "written"):
        (folder / name).mkdir()
    merge_term_weights(folder / "merged", zip(parts, masks, strict=True))
    assert len(TermWeights.open(folder / "merged")) == len(rows)
    write(folder / "written", rows)
    merged, written = (folder / name / WEIGHTS for name in ("merged", "written"))
    assert merged.read_bytes() == written.read_bytes()


@given(passages, st.data())
@settings(max_examples=60, deadline=None)
def test_a_span_has_the_weights_of_its_rows(tmp_path_factory, told, data):
    folder = tmp_path_factory.mktemp("span")
    (part,) = open_parts(folder, [told])
    first = data.draw(st.integers(0, len(told)))
    last = data.draw(st.integers(first, len(told)))
    for name in ("span", "own"):
        (folder / name).mkdir()
    merge_term_weights(folder / "span", [(part.span(first, last), None)])
    write(folder / "own", told[first:last])
    assert (folder / "span" / WEIGHTS).read_bytes() == (folder / "own" / WEIGHTS).read_bytes()
