"""Influence by the real library: an answer that was learned is explained by its own record."""

import json

import pytest

from stillroom.distill.jobs.influence import InfluenceRecipe
from stillroom.flow import run_recipe
from stillroom.records import Message, Record, write_records
from stillroom.testing import tiny_checkpoint

pytestmark = pytest.mark.peer
pytest.importorskip("bergson")


def test_an_answer_is_explained_by_the_record_that_is_the_same(tmp_path):
    tiny_checkpoint(tmp_path / "student")
    said = [f"{word} is fired at {number} degrees." for number, word in enumerate("abcdefgh")]
    rows = [Record((Message("assistant", text),), {"split": "train"}) for text in said]
    write_records(tmp_path / "records.jsonl", rows)
    write_records(tmp_path / "answers.jsonl", rows[2:4])
    recipe = InfluenceRecipe(
        student=str(tmp_path / "student"),
        records=str(tmp_path / "records.jsonl"),
        answers=str(tmp_path / "answers.jsonl"),
    )
    run_recipe(recipe, tmp_path / "out")
    lines = (tmp_path / "out/output/influence.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert row["records"][0]["record"] == row["answer"]
        assert len(row["records"]) == len(rows)
