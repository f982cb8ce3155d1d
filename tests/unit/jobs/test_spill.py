"""Records in a file read as they were put, while more come."""

import itertools

from stillroom.jobs import SpilledRecords
from stillroom.records import Link, Message, Origin, Record

ORIGIN = Origin("synthetic", (Link("m", "f", ("p",)),), "MIT")
RECORDS = [
    Record((Message("user", "q\n\ud800"), Message("assistant", f"é{at}")), {"at": at}, ORIGIN)
    for at in range(50)
]


def test_what_was_put_comes_back_in_order_and_by_index(tmp_path):
    spilled = SpilledRecords(tmp_path / "kept.jsonl")
    for record in RECORDS[:30]:
        spilled.append(record)
    assert list(spilled) == RECORDS[:30]
    some = list(itertools.islice(spilled, 5))
    for record in RECORDS[30:]:
        spilled.append(record)
    assert some == RECORDS[:5]
    assert list(spilled) == RECORDS
    assert spilled[41] == RECORDS[41]
    assert spilled[-3:] == RECORDS[-3:]
    assert RECORDS[7] in spilled
    assert len(spilled) == 50
    assert bool(spilled)
    spilled.close()


def test_nothing_is_empty(tmp_path):
    spilled = SpilledRecords(tmp_path / "kept.jsonl")
    assert not spilled
    assert list(spilled) == []
    spilled.close()
