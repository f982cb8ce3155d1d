"""Croissant metadata of an export and of a run, read by MLCommons' own reader."""

import pytest
from tests.unit.flow.papers.conftest import build_run

from stillroom.flow.papers.datasheet import write_croissant
from stillroom.flow.papers.graph import read_graph
from stillroom.records import Message, Record, write_records
from stillroom.synth.output.dataset import export_records

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_mlcroissant_finds_no_error_and_reads_every_row(tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    turns = (Message("user", "What is a still?"), Message("assistant", "A vessel."))
    rows = [Record(turns, {"split": "train", "n": at}) for at in range(3)]
    write_records(tmp_path / "records.jsonl", rows)
    export_records([tmp_path / "records.jsonl"], tmp_path / "out", format="alpaca", name="Stills")
    read = mlcroissant.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))
    assert not read.metadata.issues.errors
    (warning,) = read.metadata.issues.warnings  # a file of records says of no day
    assert "date_published" in warning or "datePublished" in warning
    found = list(read.records("train"))
    assert len(found) == 3
    assert found[0]["train/output"] in (b"A vessel.", "A vessel.")


def test_mlcroissant_finds_neither_error_nor_warning_in_the_records_of_a_run(tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    run = build_run(tmp_path)
    file = run / "croissant.json"  # paths are relative to the run
    file.write_text(write_croissant(read_graph(run)).text, encoding="utf-8")
    read = mlcroissant.Dataset(jsonld=str(file))
    assert (read.metadata.issues.errors, read.metadata.issues.warnings) == (set(), set())
    assert str(read.metadata.ctx.conforms_to.value).endswith("/1.1")
    assert [row["records/id"][:4] for row in read.records("records")] == [b"rec-"] * 3
