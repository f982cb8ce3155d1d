import json

import pytest
from tests.unit.synth.conftest import make_passages

from stillroom.errors import DataError
from stillroom.records import Message, Record, write_records
from stillroom.synth.seeds import read_seed_passages, read_seeds


def test_reads_an_index_folder(index):
    source = read_seed_passages(str(index))
    assert list(source.passages) == make_passages()
    assert not source.dropped


def test_reads_records_as_passages_and_keeps_their_origin(tmp_path):
    path = tmp_path / "rows.jsonl"
    record = Record((Message("user", "Why?"), Message("assistant", "Because of the tide.")))
    write_records(path, [record])
    passage = read_seed_passages(str(path)).passages[0]
    assert passage.text == "Why?\n\nBecause of the tide."
    assert passage.origin.kind == "unknown"


def test_counts_repeated_and_empty_rows(tmp_path):
    passage = make_passages()[0].to_json()
    empty = {**passage, "text": "  "}
    path = tmp_path / "passages.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (passage, passage, empty)))
    source = read_seed_passages(str(path))
    assert len(source.passages) == 1
    assert source.dropped == {"empty": 1, "repeated": 1}


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_seed_passages(str(tmp_path / "nowhere"))


def test_folder_without_passages_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        read_seed_passages(str(tmp_path))
    assert caught.value.code == "synth.no-passages"


@pytest.mark.parametrize(
    "line", ['{"document_id": "d", "start": 0, "end": 1, "text": 7}', '{"document_id": "d",', "[]"]
)
def test_broken_row_is_named(tmp_path, line):
    path = tmp_path / "passages.jsonl"
    path.write_text(json.dumps(make_passages()[0].to_json()) + "\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        read_seed_passages(str(path))
    assert caught.value.code == "synth.broken-passage"
    assert ":2" in caught.value.problems[0].where


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_bytes(json.dumps(make_passages()[0].to_json()).encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError) as caught:
        read_seed_passages(str(path))
    assert caught.value.code == "data.encoding"


def test_rows_of_an_unknown_form_are_refused_with_their_columns_and_the_known_ones(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("product,review\nlamp,Bright.\n")
    for takes in (("passages",), ("records",)):
        with pytest.raises(DataError) as caught:
            read_seeds(str(path), takes)
        (problem,) = caught.value.problems
        assert "row 1" in problem.what
        assert "product, review" in problem.what
        assert "question and answer, or text" in problem.what
