import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.provenance import Artifact, Parent
from stillroom.synth.output.rejected import count_rejected, read_rejected


def row(filter, reason, **more):
    record = {
        "messages": [
            {"role": "user", "content": "What do ک\u200cار bees produce?"},
            {"role": "assistant", "content": "Wax \x1b[31m and honey. " * 30},
        ]
    }
    return {
        "split": "train",
        "filter": filter,
        "reason": reason,
        "score": 0.25,
        "unit": "u",
        "record": record,
        "text": "",
        **more,
    }


@pytest.fixture
def run(tmp_path):
    rows = [
        row("grounded", "not supported by the passage", limit=0.85),
        row("duplicate", "same answer as one kept", against="rec-1: Bees make wax.", step="clean"),
        row("grounded", "names no evidence"),
        row("grounded_qa", "no question", record=None, text="hm"),
    ]
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (tmp_path / "dropped.jsonl").write_text(lines)
    return tmp_path / "dropped.jsonl"


def call(*args):
    return CliRunner().invoke(stillroom, ["synth", "drops", *map(str, args)])


def test_rows_stand_beside_their_reason(run):
    said = call(run)
    assert said.exit_code == 0, said.output
    assert "       1  clean/duplicate: same answer as one kept" in said.output
    assert "measured 0.25 (bound 0.85)" in said.output
    assert "against: rec-1: Bees make wax." in said.output
    assert "│ grounded: names no evidence" in said.output
    assert "\x1b" not in said.output
    assert "ک\u200cار bees" in said.output  # a joiner, without which the word falls apart
    assert max(map(len, said.output.splitlines())) <= 140


def test_reason_method_and_step_narrow(run):
    told = call(run, "--method", "grounded", "--reason", "EVIDENCE").output
    assert "grounded: names no evidence" in told
    assert "not supported" not in told
    assert "same answer" not in told
    said = call(run, "--step", "clean", "--n", "0").output
    assert said.splitlines() == ["       1  clean/duplicate: same answer as one kept"]
    told = json.loads(call(run, "--json", "--method", "grounded").output)
    assert {one["method"] for one in told["rows"]} == {"grounded"}
    assert sum(one["count"] for one in told["counts"]) == 4


@pytest.mark.parametrize("option", ["--method", "--reason", "--step"])
def test_where_no_row_matches_that_is_said(run, option):
    said = call(run, option, "nothing")
    assert (said.exit_code, said.stderr) == (0, "0 of 4 dropped rows match\n")


def test_what_other_commands_leave_is_shown_too(tmp_path):
    duplicates = tmp_path / "duplicates.jsonl"
    duplicates.write_text(
        '{"reason": "duplicate", "id": "a", "kept": "b", "jaccard": 0.9}\n'
        '{"file": "f", "row": 3, "reason": "no JSON"}\n'
    )
    assert [(one.score, one.against) for one in read_rejected(duplicates)] == [
        (0.9, "b"),
        (None, ""),
    ]
    contaminated = tmp_path / "contaminated.jsonl"
    item = {"file": "test.jsonl", "row": 2, "text": "What is wax?"}
    told = {
        "id": "a",
        "kind": "near",
        "share": 0.8,
        "item": item,
        "record": row("x", "y")["record"],
    }
    contaminated.write_text(json.dumps(told) + "\n")
    (one,) = read_rejected(contaminated)
    assert (one.reason, one.score, one.against) == ("near", 0.8, "test.jsonl:2 What is wax?")


def test_nothing_to_show_and_broken_rows_are_said(tmp_path, run):
    with pytest.raises(DataError) as caught:
        list(read_rejected(tmp_path / "none"))
    assert caught.value.code in {"synth.no-drops", "data.missing"}
    assert "does not exist" in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError) as caught:
        list(read_rejected(empty))
    assert caught.value.code == "synth.no-drops"
    run.write_text('{"filter": 1}\n')
    with pytest.raises(DataError) as caught:
        count_rejected(run)
    assert caught.value.code == "data.row"


def test_a_run_shows_the_rows_of_its_steps_and_names_passages_without_a_text(tmp_path, run):
    step = tmp_path / "run" / "steps" / "records"
    with closing(Job.start(step, "recipe\n")) as job:
        told = row("generator", "no sentence has a known form", record=None, unit="pas-1#0")
        rows = run.read_text() + json.dumps(told) + "\n"
        (job.output / "dropped.jsonl").write_text(rows)
        made = job.finish("records")
    parent = Parent("records", "steps/records", made.digest, "records")
    manifest = json.dumps(Artifact("report", (), parents=(parent,)).to_json())
    (tmp_path / "run" / "artifact.json").write_text(manifest)
    assert count_rejected(tmp_path / "run").total() == 5
    said = call(tmp_path / "run", "--method", "generator").output
    assert "passage: pas-1#0" in said
    assert "said:" not in said


def test_the_folder_one_stands_in_may_hold_no_rejected_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no rejected rows"):
        list(read_rejected(Path()))


def test_the_rows_that_an_unfinished_job_rejected_are_shown(tmp_path, run):
    side = tmp_path / ".out.partial" / "scratch" / "train"
    side.mkdir(parents=True)
    (side / "train-dropped.jsonl").write_text(run.read_text())
    shown = list(read_rejected(tmp_path / "out"))
    assert shown == list(read_rejected(run))
    assert shown
