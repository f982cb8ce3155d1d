"""What an artifact says of itself reads as words in the terminal."""

import json

from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.cli.output import align_columns, format_value, print_text
from stillroom.jobs import Job, escape_line


def test_values_are_told_without_brackets_of_python():
    assert format_value(None) == format_value([]) == format_value({}) == "none"
    assert format_value(True) == "yes"
    assert format_value(2.458347554) == "2.45835"
    assert format_value({"kept": 3, "dropped": {"short": 1}}) == "kept: 3, dropped: (short: 1)"
    assert format_value([1, [2, 3]]) == "1, (2, 3)"
    assert format_value([{"name": "linear", "loss": 1.0}, {"name": "ties"}]) == "linear, ties"
    assert format_value([{"loss": 1.0}, {"loss": 2.0}]) == "2 of them"


def test_an_artifact_is_shown_in_aligned_rows(tmp_path):
    job = Job.start(tmp_path / "run", "recipe")
    origin = {"kind": "synthetic", "license": "", "chain": [{"method": "merge.methods.ties"}]}
    job.finish("records", origin=origin, details={"counts": {"kept": 3}, "helped": False})
    told = CliRunner().invoke(stillroom, ["show", str(tmp_path / "run")]).output.splitlines()
    assert "  origin     synthetic, license unsaid, by merge.methods.ties" in told
    assert "  counts     kept: 3" in told
    assert "  helped     no" in told
    assert "  signature  unsigned" in told


def test_the_decision_of_a_run_is_shown_whole_and_a_long_list_is_cut(tmp_path):
    line = "Training did not measurably help. " * 20
    details = {"decision": line.strip(), "parts": ["part"] * 90}
    Job.start(tmp_path / "run", "recipe").finish("records", details=details)
    shown = CliRunner().invoke(stillroom, ["show", str(tmp_path / "run")]).output
    assert f"  decision   {line.strip()}\n" in shown
    assert shown.splitlines()[-1].endswith("...")


def test_names_in_other_scripts_are_readable_and_steer_no_terminal(capsys):
    name = "議事録\u30002024, \U0001f469\u200d\U0001f52c, a\xa0b, \u05d0\u200f, \U0001fae8"
    assert escape_line(name) == name
    assert escape_line("a\n\x1b[2J\u202e\u2028\ud800") == "a\\n\\x1b[2J\\u202e\\u2028\\ud800"
    print_text(f"{name}\n\ud800\x9b1m")
    assert capsys.readouterr().out == f"{name}\n\\ud800\\x9b1m\n"


def test_a_printed_document_in_json_stays_json(tmp_path):
    Job.start(tmp_path / "run", "recipe").finish("records")
    command = ["attest", str(tmp_path / "run"), "--format", "cyclonedx", "--name", "a\x7f\u202eb"]
    told = CliRunner().invoke(stillroom, command)
    assert not {"\x7f", "\u202e"} & set(told.stdout)
    assert json.loads(told.stdout)["metadata"]["component"]["name"] == "a\x7f\u202eb"


def test_a_number_that_is_cut_off_does_not_look_whole():
    row = align_columns([["area " + "0.123, " * 9]])
    assert len(row) == 60
    assert row.endswith("…")
