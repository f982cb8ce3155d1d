"""Croissant metadata of an export, read by MLCommons' own reader."""

import pytest

from stillroom.records import Message, Record, write_records
from stillroom.synth.output.dataset import export_records

pytestmark = pytest.mark.peer


def test_mlcroissant_finds_no_error_and_reads_every_row(tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    turns = (Message("user", "What is a still?"), Message("assistant", "A vessel."))
    rows = [Record(turns, {"split": "train", "n": at}) for at in range(3)]
    write_records(tmp_path / "records.jsonl", rows)
    export_records([tmp_path / "records.jsonl"], tmp_path / "out", format="alpaca", name="Stills")
    read = mlcroissant.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))
    assert not read.metadata.issues.errors
    found = list(read.records("train"))
    assert len(found) == 3
    assert found[0]["train/output"] in (b"A vessel.", "A vessel.")
