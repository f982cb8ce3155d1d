import csv
import errno
import gzip
import json
import os
import subprocess
import sys
import time

import pytest

from stillroom.errors import DataError, ResourceError
from stillroom.records import (
    Link,
    Message,
    Origin,
    Record,
    RecordWriter,
    count_records,
    find_record_file,
    read_records,
    streams,
    write_records,
)
from stillroom.records.files import count_unread

SUFFIXES = [".jsonl", ".jsonl.zst", ".parquet"]
RECORDS = [
    Record(
        (Message("system", ""), Message("user", "Où? 😀\n\u2028\x00"), Message("assistant", "ici")),
        {"n": 1, "big": 2**80, "nested": {"a": [None, 1.5, {"b": "ü"}]}, "split": "train"},
        Origin("synthetic", (Link("m.one", "f1", ("pas-1", "pas-2")), Link("m.two")), "MIT"),
    ),
    Record((), {}, Origin("human")),
    Record((Message("assistant", "x" * 100_000),)),
]


def refuse(path, **settings):
    with pytest.raises(DataError) as caught:
        list(read_records(path, **settings))
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_records_come_back_as_they_were(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    assert write_records(path, RECORDS) == 3
    assert list(read_records(path)) == RECORDS
    assert count_records(path) == 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_records_are_a_file_too(tmp_path, suffix):
    path = tmp_path / "deep" / f"r{suffix}"
    assert write_records(path, []) == 0
    assert list(read_records(path)) == []
    assert count_records(path) == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_records_give_equal_bytes(tmp_path, suffix):
    for name in ["a", "b"]:
        write_records(tmp_path / f"{name}{suffix}", RECORDS * 50)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"r{suffix}"
    write_records(path, RECORDS)
    before = path.read_bytes()

    def records():
        yield RECORDS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, records())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("field", [float("nan"), {1, 2}, b"x", object()])
def test_a_field_that_json_cannot_hold_is_refused(tmp_path, suffix, field):
    with pytest.raises((DataError, TypeError)) as caught:
        write_records(tmp_path / f"r{suffix}", [Record((), {"bad": field})])
    assert isinstance(caught.value, DataError)
    assert caught.value.code == "data.write"
    assert not list(tmp_path.iterdir())


def test_half_a_surrogate_pair_is_kept_in_json_and_refused_in_parquet(tmp_path):
    record = Record((Message("user", "\ud83d"),), {"x": "\udc80"})
    for suffix in SUFFIXES[:2]:
        write_records(tmp_path / f"r{suffix}", [record])
        assert list(read_records(tmp_path / f"r{suffix}")) == [record]
    with pytest.raises(DataError) as caught:
        write_records(tmp_path / "r.parquet", [record])
    assert caught.value.code == "data.write"


def test_a_full_disk_is_said_and_leaves_no_rest(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        write_records(tmp_path / "r.jsonl", RECORDS)
    assert caught.value.code == "resource.disk-full"
    assert not list(tmp_path.iterdir())


def test_other_suffixes_are_not_written_and_not_read(tmp_path):
    for name in ["r.csv", "r.txt", "r.json", "r", "r.jsonl.gz"]:
        with pytest.raises(DataError) as caught:
            RecordWriter(tmp_path / name)
        assert caught.value.code == "data.suffix"
    (tmp_path / "r.gz").write_bytes(b"x")
    assert refuse(tmp_path / "r.gz").code == "data.suffix"
    assert refuse(tmp_path / "none.jsonl").code == "data.missing"
    assert refuse(tmp_path).code == "data.missing"


def test_a_folder_names_the_file_it_holds(tmp_path):
    write_records(tmp_path / "output" / "records.parquet", RECORDS)
    assert find_record_file(tmp_path).name == "records.parquet"
    write_records(tmp_path / "output" / "records.jsonl", RECORDS[:1])
    assert len(list(read_records(tmp_path / "output"))) == 1


def test_bad_rows_are_named_or_counted(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\n'
        b"\n"
        b"{not json}\n"
        b'{"text": "\xff"}\n'
        b"[1]\n"
        b'{"text": "t", "x": NaN}\n'
        b'{"other": 1}\n' + b"[" * 100_000 + b"\n"
        b'{"text": "two"}'
    )
    dropped = {}
    kept = list(read_records(path, on_drop=dropped.__setitem__))
    assert [record.messages[0].content for record in kept] == ["one", "two"]
    assert list(dropped) == [3, 4, 5, 6, 7, 8]
    assert "not JSON" in dropped[3]
    assert "not UTF-8" in dropped[4]
    assert "NaN" in dropped[6]
    assert count_records(path) == 8
    problem = refuse(path).problems[0]
    assert problem.where == f"{path}, row 3"
    assert problem.code == "data.row"


def test_a_huge_line_is_one_bad_row_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "' + "x" * 5000 + '"}\n{"text": "two"}\n' + "y" * 3000)
    dropped = {}
    kept = list(read_records(path, on_drop=dropped.__setitem__))
    assert [record.messages[0].content for record in kept] == ["two"]
    assert list(dropped) == [1, 3]
    assert refuse(path).code == "data.row-too-large"


def test_an_unknown_format_is_never_taken_for_bad_rows(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, RECORDS)
    assert refuse(path, format="nope", on_drop=lambda *_: None).code == "data.format"


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty"])
def test_a_damaged_file_always_raises(tmp_path, suffix, damage):
    path = tmp_path / f"r{suffix}"
    write_records(path, [Record((Message("user", f"{os.urandom(50)!r}"),)) for _ in range(300)])
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut": data[:-20],
            "flip": data[:middle] + bytes([data[middle] ^ 255] * 40) + data[middle + 40 :],
            "garbage": b"\x00garbage" * 50,
            "empty": b"" if suffix == ".parquet" else data[:3],
        }[damage]
    )
    if damage == "flip" and suffix == ".parquet":
        pass  # Parquet pages have no checksum by default: a flip may survive as other bytes
    else:
        assert refuse(path, on_drop=lambda *_: None).code == "data.damaged"


def test_several_zstd_frames_are_one_file(tmp_path):
    for name in "ab":
        write_records(tmp_path / f"{name}.jsonl.zst", RECORDS)
    whole = tmp_path / "c.jsonl.zst"
    whole.write_bytes(b"".join((tmp_path / f"{n}.jsonl.zst").read_bytes() for n in "ab"))
    assert list(read_records(whole)) == RECORDS * 2


def test_gzip_lines_as_the_hub_has_them_are_read(tmp_path):
    write_records(tmp_path / "a.jsonl", RECORDS)
    packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed * 2)
    assert list(read_records(path)) == RECORDS * 2
    assert count_records(path) == len(RECORDS) * 2
    middle = len(packed) // 2
    for damaged in (packed[:-20], packed[:middle] + bytes(9) + packed[middle + 9 :], b"text"):
        path.write_bytes(damaged)
        assert refuse(path, on_drop=lambda *_: None).code == "data.damaged"
    with pytest.raises(DataError) as caught:
        write_records(path, RECORDS)
    assert caught.value.code == "data.suffix"


def test_a_table_of_very_many_columns_takes_time_by_its_size_alone(tmp_path):
    path = tmp_path / "wide.csv"
    columns = [f"c{number}" for number in range(40_000)]
    path.write_text(f"text,{','.join(columns)}\nOnce.{',1' * len(columns)}\n")
    begun = time.process_time()
    (record,) = read_records(path)
    assert time.process_time() - begun < 5  # 14 s where each name was compared with all
    assert len(record.fields) == len(columns)


def test_a_zstd_bomb_stays_small_in_memory(tmp_path):
    code = """
import resource, sys, zstandard
from pathlib import Path
from stillroom.errors import DataError
from stillroom.records import read_records, streams
streams.MAX_ROW_BYTES = 2**20
path = Path(sys.argv[1])
with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
    for _ in range(400):
        file.write(b"a" * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dropped = []
assert list(read_records(path, on_drop=lambda *row: dropped.append(row))) == []
assert len(dropped) == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    path = tmp_path / "bomb.jsonl.zst"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert path.stat().st_size < 100_000
    assert int(done.stdout) < 100_000  # KiB


def test_parquet_made_elsewhere_is_read_by_its_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table(
        {
            "conversations": [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]] * 3,
            "score": pa.array([1, None, 3]),
        }
    )
    pa.parquet.write_table(table, tmp_path / "r.parquet")
    records = list(read_records(tmp_path / "r.parquet"))
    assert [record.fields["score"] for record in records] == [1, None, 3]
    assert records[0].messages == (Message("user", "a"), Message("assistant", "b"))


def test_tools_and_their_calls_are_the_same_from_parquet_as_from_lines(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    def tell(name, arguments):
        told = {"type": "object", "properties": {key: {"type": "string"} for key in arguments}}
        call = {"function": {"name": name, "arguments": arguments}}
        turns = [{"role": "user", "content": "Do."}, {"role": "assistant", "tool_calls": [call]}]
        tool = {"type": "function", "function": {"name": name, "parameters": told}}
        return {"tools": [tool], "messages": turns, "meta": {"score": None, "n": 1}}

    # Arrow joins the keys of all rows' objects: each row has the keys of the others as nulls
    rows = [tell("weather", {"city": "Rome"}), tell("add", {"a": "1", "b": "2"})]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_lines = list(read_records(tmp_path / "r.jsonl"))
    assert '"arguments": {"city": "Rome"}' in from_lines[0].messages[1].content
    assert list(read_records(tmp_path / "r.parquet")) == from_lines


def test_parquet_of_any_type_is_read_as_it_was_written(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table(
        {
            "large": pa.array(["x", "y", None], pa.large_string()),
            "bytes": pa.array([b"\xff", None, b""], pa.binary()),
            "names": pa.array(["q", "q", "r"]).dictionary_encode(),
            "map": pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())),
            "exact": pa.array([1, None, 3], pa.decimal128(30, 2)),
            "nested": [{"texts": ["z"], "count": 1}, None, {"texts": None, "count": 2}],
            "pairs": pa.array([[1, 2]] * 3, pa.list_(pa.int32(), 2)),
            "nothing": pa.nulls(3),
            "turns": [[{"role": "user", "content": text}] for text in "xyz"],
            "lists": pa.array([["a"], [], None], pa.large_list(pa.string())),
            "two": pa.array([["a", "b"], None, ["a", "c"]], pa.list_(pa.string(), 2)),
            "view": pa.array(["a", None, "b"], pa.string_view()),
        }
    )
    for size in (3, 1):  # rows of a group
        pa.parquet.write_table(table, tmp_path / "r.parquet", row_group_size=size)
        assert [row for _, row in streams.iter_rows(tmp_path / "r.parquet")] == table.to_pylist()


def test_a_text_that_parquet_repeats_does_not_fill_the_memory(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet

    monkeypatch.setattr(streams, "MAX_ROW_BYTES", 2**15)
    monkeypatch.setattr(streams, "_BATCH_BYTES", 2**14)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), ["x" * 2**10])
    pairs = pa.StructArray.from_arrays([texts, texts], ["a", "b"])
    lists = pa.ListArray.from_arrays([0, 1, 600], pairs)
    maps = pa.MapArray.from_arrays([0, 599, 600], pa.array(map(str, range(600))), texts)
    pa.parquet.write_table(pa.table({"l": lists, "m": maps}), tmp_path / "r.parquet")
    pa.parquet.write_table(pa.table({"l": lists.slice(0, 1)}), tmp_path / "small.parquet")
    assert (tmp_path / "r.parquet").stat().st_size < 20_000
    before = pa.total_allocated_bytes()
    rows = [row for _, row in streams.iter_rows(tmp_path / "r.parquet")]
    assert [getattr(row, "code", "") for row in rows] == ["data.row-too-large"] * 2
    assert pa.total_allocated_bytes() - before < 2**20
    ((number, row),) = streams.iter_rows(tmp_path / "small.parquet")
    assert (number, len(row["l"][0]["b"])) == (1, 2**10)


def test_the_texts_of_a_row_group_are_not_counted_again_for_every_few_rows(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet

    count, counted = streams._count_bytes, []

    def count_bytes(array):
        counted.append(len(getattr(array, "dictionary", ())))
        return count(array)

    monkeypatch.setattr(streams, "_count_bytes", count_bytes)
    texts = [f"text number {number} of many" for number in range(50_000)]
    kinds = pa.array(["a", "b"] * 25_000).dictionary_encode().cast(pa.dictionary("int8", "string"))
    table = pa.table({"text": texts, "kind": kinds})
    pa.parquet.write_table(table, tmp_path / "r.parquet")
    rows = [row for _, row in streams.iter_rows(tmp_path / "r.parquet")]
    assert rows == table.to_pylist()
    assert sum(counted) < 10 * len(texts)


def test_values_of_parquet_that_python_cannot_hold_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    ends = pa.array([0, 2, 4], pa.int32()).buffers()[1]
    bad_text = pa.StringArray.from_buffers(2, ends, pa.py_buffer(b"ab\xff\xfe"))
    far = pa.array([1, 2**31 - 1], pa.int32()).cast(pa.date32())
    for column in (bad_text, far):
        pa.parquet.write_table(pa.table({"a": column}), tmp_path / "r.parquet")
        with pytest.raises(DataError, match=r"r\.parquet is damaged") as caught:
            list(streams.iter_rows(tmp_path / "r.parquet"))
        assert caught.value.code == "data.damaged"


def test_a_parquet_column_that_claims_billions_of_values_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table({"a": [[0] * 100]}), tmp_path / "r.parquet")
    monkeypatch.setattr("stillroom.records.streams._MAX_CHUNK_VALUES", 99)
    monkeypatch.setattr("stillroom.records.streams._VALUES_PER_BYTE", 0)
    with pytest.raises(DataError, match="100 values") as caught:
        list(streams.iter_rows(tmp_path / "r.parquet"))
    assert caught.value.code == "data.damaged"


def test_the_schema_of_parquet_does_not_depend_on_the_records(tmp_path):
    import pyarrow.parquet

    write_records(tmp_path / "a.parquet", [])
    write_records(tmp_path / "b.parquet", RECORDS)
    first, second = (pyarrow.parquet.read_schema(tmp_path / f"{n}.parquet") for n in "ab")
    assert first.equals(second)


def test_csv_rows_need_all_cells_and_may_span_lines(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text('prompt,completion,n\n"a\nb","c, ""d""",1\nx,y\nx,y,2,3\np,q,4\n', "utf-8-sig")
    dropped = {}
    records = list(read_records(path, on_drop=dropped.__setitem__))
    assert [record.messages[0].content for record in records] == ["a\nb", "p"]
    assert records[0].messages[1].content == 'c, "d"'
    assert records[0].fields == {"n": "1"}
    assert list(dropped) == [2, 3]
    path.write_bytes(b"text\n\xff\n")
    assert refuse(path).code == "data.encoding"
    path.write_text('text\n"open\n')
    assert refuse(path).code == "data.damaged"
    path.write_text("text,n,text\na,1,b\n")
    assert "two columns are named 'text'" in refuse(path).problems[0].what
    path.write_text("text,n,,\na,1,,\n")  # as spreadsheets write it
    assert [record.fields["n"] for record in read_records(path)] == ["1"]


@pytest.mark.parametrize(("name", "mark"), [("r.csv", ";"), ("r.csv", "\t"), ("r.tsv", "\t")])
def test_tables_with_other_separators_are_rows_too(tmp_path, name, mark):
    path = tmp_path / name
    with path.open("w", newline="") as file:
        rows = [["prompt", "completion", "price, net"], ["a, b", "c\nd", "1,5"], ["x", "y", "2,0"]]
        csv.writer(file, delimiter=mark).writerows(rows)
    records = list(read_records(path))
    assert [record.messages[0].content for record in records] == ["a, b", "x"]
    assert records[0].messages[1].content == "c\nd"
    assert records[0].fields == {"price, net": "1,5"}
    assert count_records(path) == 2
    path.write_text(f"Review{mark}Rating\nGood{mark}5\n")
    problem = refuse(path).problems[0]
    assert "Review, Rating" in problem.what
    assert "rename" in problem.next


def test_a_wide_csv_cell_is_read(tmp_path):
    path = tmp_path / "r.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], ["x" * 500_000]])
    assert len(next(read_records(path)).messages[0].content) == 500_000


def test_json_and_text_files_are_rows_too(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([{"text": "a"}, {"text": "b"}]))
    assert [r.messages[0].content for r in read_records(tmp_path / "r.json")] == ["a", "b"]
    (tmp_path / "one.json").write_text(json.dumps({"text": "a"}))
    assert len(list(read_records(tmp_path / "one.json"))) == 1
    (tmp_path / "bad.json").write_text("[{]")
    assert refuse(tmp_path / "bad.json").code == "data.damaged"
    (tmp_path / "r.txt").write_bytes("één\r\n\ntwee".encode())
    assert [r.messages[0].content for r in read_records(tmp_path / "r.txt")] == ["één", "twee"]
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n")
    assert refuse(tmp_path / "latin.txt").code == "data.encoding"


def test_json_too_large_to_stream_says_how_to_make_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_JSON_BYTES", 10)
    (tmp_path / "r.json").write_text(json.dumps([{"text": "long enough"}]))
    error = refuse(tmp_path / "r.json")
    assert error.code == "data.too-large"
    assert "jq" in str(error)


def test_unread_rows_are_counted_by_reason():
    reasons = [
        "row 1: an item has the role 'x'",
        "row 4: content is null",
        "row 9: an item has the role 'y'",
        *(f"row {9 + len(name)}: {name}" for name in ("a", "b", "c", "d", "e")),
    ]
    counts = count_unread(reasons)
    assert counts["unreadable row, such as row 1: an item has the role 'x'"] == 2
    assert counts["unreadable row, such as row 4: content is null"] == 1
    assert sum(counts.values()) == len(reasons)
    assert len(counts) == 6
    assert count_unread([]) == {}
