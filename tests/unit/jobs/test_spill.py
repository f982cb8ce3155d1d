"""Records in a file read as they were put, while more come."""

import itertools

import pytest

from stillroom.errors import DataError
from stillroom.jobs import DiskRecordList
from stillroom.records import (
    Link,
    Message,
    Origin,
    Record,
    RecordWriter,
    read_records,
    write_records,
)

ORIGIN = Origin("synthetic", (Link("m", "f", ("p",)),), "MIT")
RECORDS = [
    Record((Message("user", "q\n\ud800"), Message("assistant", f"é{at}")), {"at": at}, ORIGIN)
    for at in range(50)
]


def test_what_was_put_comes_back_in_order_and_by_index(tmp_path):
    spilled = DiskRecordList(tmp_path / "kept.jsonl")
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
    spilled = DiskRecordList(tmp_path / "kept.jsonl")
    assert not spilled
    assert list(spilled) == []
    spilled.close()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
def test_what_is_copied_is_what_is_written(tmp_path, suffix):
    records = RECORDS
    if suffix == ".parquet":  # which holds whole characters only
        records = [Record((Message("assistant", "é"),), {"at": at}, ORIGIN) for at in range(50)]
    written, copied = tmp_path / f"written{suffix}", tmp_path / f"copied{suffix}"
    with DiskRecordList(tmp_path / "kept.jsonl") as spilled, RecordWriter(copied) as writer:
        writer.write(records[0])
        for record in records:
            spilled.append(record)
        spilled.copy_to(writer)
        assert writer.count == len(records) + 1
    assert write_records(written, [records[0], *records]) == len(records) + 1
    if suffix == ".jsonl":
        assert copied.read_bytes() == written.read_bytes()
    assert list(read_records(copied)) == list(read_records(written))


def test_a_record_that_no_file_can_hold_is_refused_when_it_comes(tmp_path):
    with DiskRecordList(tmp_path / "kept.jsonl") as spilled:
        spilled.append(RECORDS[0])
        with pytest.raises(DataError, match="record 2 cannot be written"):
            spilled.append(Record((Message("assistant", "x"),), {"score": float("nan")}, ORIGIN))
        assert list(spilled) == RECORDS[:1]
