import itertools
import random

import numpy as np
import pytest

from stillroom.errors import IntegrityError
from stillroom.rag.analysis.phrases import encode_position, find_phrase_rows
from stillroom.rag.search_engines.arrays import write_arrays
from stillroom.rag.search_engines.keyword import (
    FIELDS,
    POSTINGS,
    Postings,
    merge_postings,
    write_postings,
)

WORDS = ["a", "b", "naïve", "日本", "c++", "\ud800", "z" * 64, "the", ""]


def make_rows(count, seed=0):
    rng = random.Random(seed)
    rows = []
    for at in range(count):
        headings = rng.choices(WORDS, k=rng.randint(0, 3))
        body = rng.choices(WORDS, k=rng.randint(0, 12))
        rows.append((f"p{at}", headings, body, len(headings), len(body) - body.count("the")))
    return rows


def write(folder, rows):
    folder.mkdir()
    write_postings(folder, rows)
    assert len(Postings.open(folder)) == len(rows)
    return Postings.open(folder)


def test_every_occurrence_is_found_where_it_stands(tmp_path):
    rows = make_rows(40)
    postings = write(tmp_path / "one", rows)
    assert len(postings) == 40
    assert postings.lengths.tolist() == [[row[3], row[4]] for row in rows]
    assert postings.term_count == len({term for row in rows for term in (*row[1], *row[2])})
    for term in WORDS:
        number = postings.find(term)
        held, *counts = postings.look_up(number)
        holding = [at for at, row in enumerate(rows) if term in (*row[1], *row[2])]
        assert held.tolist() == holding
        for column, field in enumerate(FIELDS):
            assert counts[column].tolist() == [rows[at][1 + column].count(term) for at in holding]
            expected = [
                (at, encode_position(spot))
                for at, row in enumerate(rows)
                for spot, word in enumerate(row[1 + column])
                if word == term
            ]
            found = postings.occurrences(number, field)
            assert list(zip(*(each.tolist() for each in found), strict=True)) == expected
    assert postings.find("nowhere") is None
    assert postings.find("zz" * 40) is None


def test_no_rows_and_empty_rows_are_postings_too(tmp_path):
    nothing = write(tmp_path / "nothing", [])
    assert (len(nothing), nothing.term_count, nothing.find("a")) == (0, 0, None)
    empty = write(tmp_path / "empty", [("p", [], [], 0, 0)] * 3)
    assert (len(empty), empty.term_count, empty.find("")) == (3, 0, None)


def test_a_term_occurring_more_than_255_times_keeps_its_count(tmp_path):
    postings = write(tmp_path / "one", [("p", [], ["a"] * 70_000, 0, 70_000)])
    number = postings.find("a")
    assert postings.look_up(number)[2].tolist() == [70_000]
    assert postings.occurrences(number, "body")[1].tolist() == list(
        map(encode_position, range(70_000))
    )


@pytest.mark.parametrize("seed", range(4))
def test_merged_parts_are_the_bytes_of_their_kept_rows(tmp_path, seed):
    rng = np.random.default_rng(seed)
    parts, kept, left = [], [], []
    for at, count in enumerate([5, 0, 17, 1]):
        rows = make_rows(count, seed=10 * seed + at)
        mask = None if at == 0 else rng.random(count) < 0.5
        keep = [True] * count if mask is None else mask.tolist()
        parts.append(write(tmp_path / f"{at}", rows))
        kept.append(mask)
        left += [row for row, stays in zip(rows, keep, strict=True) if stays]
    write(tmp_path / "afresh", left)
    (tmp_path / "merged").mkdir()
    merge_postings(tmp_path / "merged", parts, kept)
    assert len(Postings.open(tmp_path / "merged")) == len(left)
    assert (tmp_path / "merged" / POSTINGS).read_bytes() == (
        tmp_path / "afresh" / POSTINGS
    ).read_bytes()


def test_merging_nothing_gives_no_rows(tmp_path):
    merge_postings(tmp_path, [], [])
    assert len(Postings.open(tmp_path)) == 0


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "other", "header"])
def test_a_damaged_file_is_refused_and_named(tmp_path, harm):
    write(tmp_path / "one", make_rows(20))
    path = tmp_path / "one" / POSTINGS
    data = path.read_bytes()
    path.unlink()
    if harm != "missing":
        changed = {
            "empty": b"",
            "cut": data[:-5],
            "other": b"not postings at all",
            "header": data.replace(b'"starts"', b'"startz"'),
        }[harm]
        path.write_bytes(changed)
    with pytest.raises(IntegrityError) as caught:
        Postings.open(tmp_path / "one")
    assert caught.value.code == "rag.index-damaged"
    assert POSTINGS in str(caught.value)


def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path):
    postings = write(tmp_path / "one", make_rows(20))
    arrays = dict(postings._arrays)
    for name in ("rows", "starts", "lengths", "body_positions"):
        write_arrays(tmp_path / "one" / POSTINGS, {**arrays, name: arrays[name][:-1].copy()})
        if name == "lengths":
            continue  # fewer rows than some posting names: what the digest is for
        with pytest.raises(IntegrityError, match="inconsistent"):
            Postings.open(tmp_path / "one")


def find_by_hand(words, spots):
    """Return the rows where a walk from place to place goes through all words."""

    def goes_on(before, after):
        (word, slot), is_last = before
        return after[0] in ({(word + 1, 0), (word + 1, 1)} if is_last else {(word, slot + 1)})

    def walk(row, before, rest):
        return not rest or any(
            (before is None or goes_on(before, spot)) and walk(row, spot, rest[1:])
            for spelling in rest[0]
            for spot in spots.get((row, spelling), ())
        )

    ways = [sum(chains, ()) for chains in itertools.product(*words)]
    return [row for row in range(4) if any(walk(row, None, way) for way in ways)]


def test_phrases_are_found_wherever_their_words_and_parts_stand():
    rng = random.Random(0)
    hits = 0
    for _ in range(300):
        spots = {}
        for _ in range(40):
            slot = rng.randrange(4)
            spot = (rng.randrange(6), slot), slot == 0 or rng.random() < 0.5
            spots.setdefault((rng.randrange(4), rng.choice("abc")), set()).add(spot)

        def occurrences(term, spots=spots):
            every = sorted(
                (row, encode_position(*at, is_last=is_last))
                for (row, own), found in spots.items()
                for at, is_last in found
                if own == term
            )
            pairs = np.array(every, dtype=np.int64).reshape(-1, 2)
            return pairs[:, 0], pairs[:, 1]

        words = [
            tuple(
                tuple(
                    tuple(rng.sample("abc", rng.choice([1, 1, 2])))
                    for _ in range(rng.randrange(1, 4))
                )
                for _ in range(rng.choice([1, 1, 2]))
            )
            for _ in range(rng.randrange(1, 4))
        ]
        found = find_phrase_rows(words, occurrences).tolist()
        assert found == find_by_hand(words, spots)
        hits += len(found)
    assert 100 < hits < 1100
