"""What a page counts in one pass is what it would count with all records at hand."""

import random

from stillroom.jobs import DiskList
from stillroom.records import Message, Origin, Record
from stillroom.synth.pipeline.results import _CountedNumbers
from stillroom.synth.pipeline.statistics import BottomK, RecordStats, RejectionStats
from stillroom.synth.types import RejectedRecord


def test_the_lowest_are_those_of_a_sort_whatever_the_number():
    rng = random.Random(0)
    for count in (0, 3, 7, 8, 60):
        keys = [rng.randrange(20) for _ in range(count)]
        lowest = BottomK(7)
        for at, key in enumerate(keys):
            lowest.add(key, at)
        order = sorted(range(count), key=keys.__getitem__)
        assert lowest.get_sorted() == order[:7]
        assert lowest.get_sample() == (order[:7] if count > 7 else list(range(count)))


def test_records_are_counted_once_and_by_origin():
    said = [
        Record((Message("user", f"What is {n}?"), Message("assistant", "It is. " * n)), {}, origin)
        for n, origin in ((1, Origin("synthetic")), (5, Origin("synthetic", (), "MIT")))
    ]
    people = Record((Message("assistant", "Bees."),), {}, Origin("human"))
    tally = RecordStats.of(iter([*said, people]))
    assert (tally.count, tally.kinds["human"], tally.licenses["MIT"]) == (3, 1, 1)
    assert tally.openings == {"What is 1?": 1, "What is 5?": 1}
    assert tally.lengths == {0: 1, 1: 1}
    assert len(tally.sample) == 2
    assert RecordStats.of([people]).sample == ["Bees."]


def test_rows_that_fell_come_back_from_a_file_as_they_were(tmp_path):
    record = Record((Message("assistant", "Bees."),), {"n": 1}, Origin("human"))
    rows = [
        RejectedRecord("train", "grounded", "not supported", "u", 0.123456789, record, limit=0.85),
        RejectedRecord(
            "train", "decontaminate", "held-out text", "v", 1 / 3, record, against="Bees?"
        ),
        RejectedRecord(
            "train", "generator", "no question", "w", text="said \ud800 nothing", step="ask"
        ),
    ]
    with DiskList(
        tmp_path / "rows", RejectedRecord.to_exact_json, RejectedRecord.from_json
    ) as spilled:
        for row in rows:
            spilled.append(row)
        assert list(spilled) == rows
        falls = RejectionStats.of(spilled)
    assert falls.counts["ask / generator: no question"] == 1
    assert falls.found == [rows[1]]
    assert falls.examples("grounded: not supported") == [rows[0]]


def test_an_account_is_settled_once_in_any_order():
    settled, order = _CountedNumbers(), [0, 2, 1, 1, 2, 5, 3, 0, 4, 5]
    assert [settled.add(number) for number in order] == [
        number not in order[:at] for at, number in enumerate(order)
    ]
    assert not settled._beyond
