"""The report of a run."""

import json

import pytest

from stillroom.flow.pipeline import write_run_report
from stillroom.jobs import Job


@pytest.mark.parametrize(("asks", "said"), [(0, "no model was asked"), (3, "Its settings.")])
def test_settings_of_a_generator_are_not_counted_among_records(tmp_path, asks, said):
    job = Job.start(tmp_path / "records", "recipe\n")
    counts = {
        "generator": {"name": "grounded_qa", "max_answer_tokens": 80, "top_p": 0.95},
        "spent": {"asks": asks},
        "splits": {"train": {"kept": 7, "dropped": {"quality: poor": 2}}},
    }
    (job.output / "report.json").write_text(json.dumps(counts))
    job.finish("records")
    out = tmp_path / "run"
    out.mkdir()
    write_run_report(out, {"records": tmp_path / "records"}, {"records": 1.0}, {})
    sections = {
        section["title"]: section
        for section in json.loads((out / "report.json").read_text())["sections"]
    }
    rows = sections["Records (records)"]["table"]["rows"]
    assert [row for row in rows if row[0].startswith("splits")] == [
        ["splits / train / kept", "7"],
        ["splits / train / dropped / quality: poor", "2"],
    ]
    assert not [row for row in rows if "generator /" in row[0]]
    settings = sections["Generator of records (records)"]
    assert ["top_p", "0.95"] in settings["table"]["rows"]
    assert said in settings["text"]


def test_the_time_of_each_stage_and_the_choices_are_in_the_report(tmp_path):
    job = Job.start(tmp_path / "index", "recipe\n")
    for seconds in (2.0, 3.5):
        job.event("phase", name="validate", count=1, seconds=seconds, cpu_seconds=1.0)
    job.say("no choice")
    job.say("embedder builtin:mpnet-int8: it is\u2028installed", kind="choice")
    for stranger in ({"name": 3}, {"name": "validate", "seconds": "1e9"}, {"name": "x"}):
        job.event("phase", **stranger)
    job.event("choice", text=["no text"])
    job.finish("index")
    out = tmp_path / "run"
    out.mkdir()
    write_run_report(out, {"index": tmp_path / "index"}, {"index": 9.0}, {})
    sections = json.loads((out / "report.json").read_text())["sections"]
    rows = {section["title"]: section["table"]["rows"] for section in sections}
    assert rows["Stages"] == [["index", "validate", "5.5 s"]]
    assert rows["Steps"][0][2] == "9.0 s"
    assert rows["Choices"] == [["index", "embedder builtin:mpnet-int8: it is\u2028installed"]]


def test_a_step_that_was_reused_is_called_so_and_not_given_the_time_of_its_making(tmp_path):
    job = Job.start(tmp_path / "index", "recipe\n")
    job.event("phase", name="validate", count=1, seconds=5.5, cpu_seconds=1.0)
    job.finish("index")
    out = tmp_path / "run"
    out.mkdir()
    write_run_report(out, {"index": tmp_path / "index"}, {"index": 9.0}, {}, ["index"])
    sections = json.loads((out / "report.json").read_text())["sections"]
    rows = {section["title"]: section["table"]["rows"] for section in sections}
    assert rows["Steps"][0][2] == "reused (made in 9.0 s)"
    assert rows["Stages"] == [["index", "validate", "reused (made in 5.5 s)"]]
