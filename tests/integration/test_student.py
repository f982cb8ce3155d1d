"""The recipe flow/student end to end: every step real, small enough for every commit."""

import copy
import json
import shutil
import sys

import pytest
from tests.integration.main_job import StudentJob, check_papers, digests
from tests.processes import run_process

from stillroom.provenance import read_artifact, read_ledger

STEPS = ("index", "records", "student", "merged", "export", "report")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return StudentJob(tmp_path_factory.mktemp("main_job"))


@pytest.fixture(scope="module")
def run(job):
    out = job.folder / "run"
    code, said = job.make(out)
    assert code == 0, said
    return out


def stillroom(*arguments):
    return run_process([sys.executable, "-m", "stillroom", *map(str, arguments)])


def test_papers_are_valid_and_quick(run, tmp_path):
    check_papers(run, tmp_path / "papers")


def test_report_has_every_figure_with_its_n(run):
    metrics = {row["name"]: row for row in json.loads((run / "report.json").read_text())["metrics"]}
    for name in (
        "student/parameters",
        "teacher/parameters",
        "student/kl_to_teacher/initial",
        "student/kl_to_teacher/final",
        "retrieval/recall@5",
        "answers/teacher/closed/f1",
        "answers/teacher/retrieved/f1",
        "answers/student/closed/f1",
        "answers/student/retrieved/f1",
        *(f"seconds/{step}" for step in STEPS),
    ):
        assert set(metrics[name]) >= {"name", "value", "low", "high", "n", "unit"}
        assert metrics[name]["n"] >= 1
    assert "<html" in (run / "report.html").read_text()


def test_second_run_does_nothing(job, run):
    before = digests(run)
    code, said = job.make(run)
    assert code == 0, said
    assert said.count("unchanged, kept") == len(STEPS)
    assert digests(run) == before


def test_lineage_walks_to_the_bytes_of_the_documents(run):
    told = stillroom("show", run, "--lineage")
    assert told.returncode == 0, told.stderr
    assert ".md: bytes " in told.stdout
    tree = json.loads(stillroom("show", run, "--lineage", "--json").stdout)["lineage"]
    text = json.dumps(tree)
    assert "grounded_qa" in text
    assert '"missing"' not in text


def test_byte_ranges_of_records_hold_their_evidence(job, run):
    steps = read_artifact(run).details["steps"]
    rows = (run / steps["records"] / "output" / "records.jsonl").read_text().splitlines()
    passages = {row["id"]: row for row in read_ledger(run / steps["index"] / "output", "passages")}
    checked = 0
    for row in map(json.loads, rows):
        evidence = row["fields"].get("evidence")
        if evidence is None:
            continue
        place = passages[evidence["passage_id"]]["location"]
        data = (job.documents / place["path"]).read_bytes()
        quoted = data[place["byte_start"] : place["byte_end"]].decode()
        assert evidence["quote"] in quoted
        assert row["origin"]["kind"] == "synthetic"
        checked += 1
    assert checked >= 16


def test_held_out_documents_never_teach(run):
    steps = read_artifact(run).details["steps"]
    rows = [
        json.loads(line)
        for line in (run / steps["records"] / "output" / "records.jsonl").read_text().splitlines()
    ]
    sides = {"train": set(), "held_out": set()}
    for row in rows:
        sides[row["fields"]["split"]].add(row["fields"]["document_id"])
    assert sides["held_out"]
    assert not sides["train"] & sides["held_out"]


def test_verify_passes_and_names_the_file_of_one_flipped_byte(run, tmp_path):
    assert stillroom("verify", run).returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    merged = read_artifact(copy).details["steps"]["merged"]
    victim = copy / merged / "output" / "model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    told = stillroom("verify", copy)
    assert told.returncode == 1
    assert "output/model.safetensors" in told.stderr


def test_killed_in_every_step_and_resumed_ends_with_the_same_digests(job, run, tmp_path):
    out = tmp_path / "run"
    for step, delay_s in zip(STEPS, (0.05, 0.05, 0.8, 0.3, 0.3, 0.3), strict=True):
        job.kill_in(out, step, delay_s)
    code, said = job.make(out, "--resume")
    assert code == 0, said
    assert digests(out) == digests(run)


def test_of_one_document_a_model_is_made_and_the_report_says_what_could_not_be_measured(
    job, tmp_path
):
    alone = copy.copy(job)
    alone.documents = tmp_path / "documents"
    alone.documents.mkdir()
    shutil.copy(job.documents / "alder.md", alone.documents)
    code, said = alone.make(tmp_path / "run", "steps.records.held_out=0.0001")
    assert code == 0, said
    assert "no merge can be scored" in said
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "No held-out question could be asked" in report["summary"]
    sections = {section["title"]: section for section in report["sections"]}
    assert "No merge was judged" in sections["Merge candidates (merged)"]["text"]
