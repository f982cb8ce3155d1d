"""Records as a dataset: every shape loads as its readers expect, and nothing vanishes unsaid."""

import json

import pytest
from click.testing import CliRunner
from pyarrow import parquet
from ruamel.yaml import YAML

from stillroom.cli import stillroom
from stillroom.errors import DataError
from stillroom.provenance import digest_file
from stillroom.records import Link, Message, Origin, Record, from_row, write_records
from stillroom.synth.exporting import export_records

MADE = Origin("synthetic", (Link("synth.generators.grounded_qa", "model-1"),), "CC-BY-4.0")


def pair(asked, said, origin=MADE, **fields):
    return Record((Message("user", asked), Message("assistant", said)), fields, origin)


@pytest.fixture
def records(tmp_path):
    rows = [
        pair("Why?", "Because.", split="train", rejected="No."),
        pair("Who?", "Nobody.", Origin("human", (), "CC-BY-4.0"), split="held_out"),
        Record((Message("assistant", "Plain text.\u2028Two lines."),), {"split": "train"}, MADE),
    ]
    write_records(tmp_path / "r.jsonl", rows)
    return tmp_path / "r.jsonl"


def rows_of(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.mark.parametrize(
    ("shape", "keys", "count"),
    [
        ("messages", {"messages"}, 3),
        ("sharegpt", {"conversations"}, 3),
        ("alpaca", {"instruction", "input", "output"}, 2),
        ("prompt_completion", {"prompt", "completion"}, 3),
        ("text", {"text"}, 1),
        ("preference", {"prompt", "chosen", "rejected"}, 1),
    ],
)
def test_every_shape_has_its_keys_and_what_does_not_fit_is_counted(
    records, tmp_path, shape, keys, count
):
    told = export_records([records], tmp_path / "out", format=shape)
    found = [row for path in (tmp_path / "out").glob("*.jsonl") for row in rows_of(path)]
    assert told.rows.total() == len(found) == count
    assert told.left_out.total() == 3 - count
    assert all(set(row) == keys | {"id", "origin"} for row in found)


def test_nothing_is_lost_where_fields_are_kept(records, tmp_path):
    export_records([records], tmp_path / "out", with_fields=True)
    (row,) = rows_of(tmp_path / "out/test.jsonl")
    again = from_row({key: value for key, value in row.items() if key != "id"})
    assert (again.messages[0].content, again.origin.license) == ("Who?", "CC-BY-4.0")


def test_the_card_says_splits_origin_and_license(records, tmp_path):
    words = ["synth", "export", records, "--out", tmp_path / "out", "--name", "Bees: a set"]
    done = CliRunner().invoke(stillroom, list(map(str, words)), catch_exceptions=False)
    assert "1 test, 2 train" in done.output
    card = (tmp_path / "out/README.md").read_text()
    front = YAML(typ="safe").load(card.split("---")[1])
    assert front["pretty_name"] == "Bees: a set"
    assert front["license"] == "cc-by-4.0"
    assert "synthetic" in front["tags"]
    assert {one["split"] for one in front["configs"][0]["data_files"]} == {"train", "test"}
    assert "synthetic: 2 rows (67%)" in card
    assert "`model-1`: 2 rows" in card


def test_parquet_holds_the_same_rows(records, tmp_path):
    export_records([records], tmp_path / "lines")
    export_records([records], tmp_path / "table", kind="parquet")
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == [
        "README.md",
        "croissant.json",
        "test.parquet",
        "train.parquet",
    ]
    found = parquet.read_table(tmp_path / "table/train.parquet").to_pylist()
    assert found == rows_of(tmp_path / "lines/train.jsonl")


def test_croissant_names_every_file_with_its_digest(records, tmp_path):
    export_records([records], tmp_path / "out")
    about = json.loads((tmp_path / "out/croissant.json").read_text())
    for one in about["distribution"]:
        assert one["sha256"] == digest_file(tmp_path / "out" / one["contentUrl"])
    assert {one["@id"] for one in about["recordSet"]} == {"train", "test"}


def test_differing_licenses_are_other_and_said(records, tmp_path):
    write_records(tmp_path / "more.jsonl", [pair("What?", "That.", Origin("human", (), "MIT"))])
    export_records([records, tmp_path / "more.jsonl"], tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "license: other" in card
    assert "different licenses (CC-BY-4.0, MIT)" in card


def test_an_old_folder_stays_where_nothing_fits(records, tmp_path):
    export_records([records], tmp_path / "out")
    before = (tmp_path / "out/README.md").read_text()
    with pytest.raises(DataError) as caught:
        export_records([records], tmp_path / "out")
    assert caught.value.problems[0].code == "data.exists"
    write_records(tmp_path / "none.jsonl", [Record((Message("assistant", "Alone."),))])
    with pytest.raises(DataError) as caught:
        export_records([tmp_path / "none.jsonl"], tmp_path / "out", format="alpaca", overwrite=True)
    assert caught.value.problems[0].code == "synth.no-records"
    assert (tmp_path / "out/README.md").read_text() == before
