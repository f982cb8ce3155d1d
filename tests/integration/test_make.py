"""The main job end to end: every step real, small enough for every commit."""

import copy
import json
import shutil
import sys

import pytest
from tests.integration.main_job import MainJob, check_papers, digests, step_folders
from tests.processes import run_process

from stillroom.provenance import read_artifact
from stillroom.records import Answer, Message, Sampling
from stillroom.serve.mounts import Mount, open_mounts

STEPS = ("index", "records", "reader", "report")
QUESTION = "What does the old mill of Alder grind every morning?"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return MainJob(tmp_path_factory.mktemp("main_job"))


@pytest.fixture
def brief(job):
    """The same job, whose report asks one question; not for what is said of the report."""
    brief = copy.copy(job)
    brief.questions = 1
    return brief


@pytest.fixture(scope="module")
def made(job):
    out = job.folder / "run"
    code, said = job.make(out)
    assert code == 0, said
    return out, said


@pytest.fixture(scope="module")
def run(made):
    return made[0]


def stillroom(*arguments):
    return run_process([sys.executable, "-m", "stillroom", *map(str, arguments)])


def test_papers_are_valid_and_quick(run, tmp_path):
    check_papers(run, tmp_path / "papers")


def test_report_begins_with_the_decision_and_has_every_figure(made):
    run, said = made
    report = json.loads((run / "report.json").read_text())
    decision = read_artifact(run).details["decision"]
    notes = read_artifact(run).details["notes"]
    assert report["summary"] == decision
    assert decision.startswith(
        "Answers come from the owned reader. Nothing is proved: "
    )  # so few decide nothing
    assert "only questions by people can decide" in notes[-1]
    assert all(note in said for note in notes)
    assert decision in said
    metrics = {row["name"]: row for row in report["metrics"]}
    for arm in ("owned", "packaged", "sentence", "base"):
        for name in ("holds", "wrong", "silent_answerable", "silent_unanswerable"):
            assert metrics[f"reader/{arm}/{name}"]["n"] >= 1
    for name in ("owned_minus_sentence", "owned_minus_packaged", "cpu_s_a_question"):
        assert set(metrics[f"reader/{name}"]) >= {"value", "low", "high", "n"}
    assert all(f"seconds/{step}" in metrics for step in STEPS)
    titles = [section["title"] for section in report["sections"]]
    assert titles[:4] == [
        "How it was decided",
        "Is it worth it",
        "Differences",
        "Answers side by side",
    ]


def test_second_run_does_nothing(job, run):
    before = digests(run)
    code, said = job.make(run)
    assert code == 0, said
    assert said.count("unchanged, kept") == len(STEPS)
    assert digests(run) == before


def test_run_quotes_with_its_own_reader(run):
    told = stillroom("ask", run, QUESTION, "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert answer["details"]["answering"] == "quote"
    own = stillroom("ask", run, QUESTION, "--json", "--answering", "quote:reader=builtin:overlap")
    other = json.loads(own.stdout)
    thresholds = [
        [step["threshold"] for step in one["details"]["trace"] if step["step"] == "select"]
        for one in (answer, other)
    ]
    assert thresholds[0] != thresholds[1]
    reader = run / read_artifact(run).details["steps"]["reader"] / "output" / "reader.json"
    assert thresholds[0] == [json.loads(reader.read_text())["threshold"]]


def test_server_quotes_with_the_runs_reader(run):
    with open_mounts([Mount("run", str(run))]) as (served,):
        pieces = served.ask(
            [Message("user", QUESTION)],
            Sampling(max_new_tokens=8),
            3,
            settings={},
            access=None,
            is_cancelled=lambda: False,
        )
        (answer,) = (piece for piece in pieces if isinstance(piece, Answer))
    reader = run / read_artifact(run).details["steps"]["reader"] / "output" / "reader.json"
    (selected,) = [step for step in answer.details["trace"] if step["step"] == "select"]
    assert selected["threshold"] == json.loads(reader.read_text())["threshold"]


def test_lineage_goes_through_the_reader_to_the_bytes_of_the_documents(run):
    tree = json.loads(stillroom("show", run, "--lineage", "--json").stdout)["lineage"]
    text = json.dumps(tree)
    assert tree["children"][0]["title"] == "reader"
    assert "grounded_qa" in text
    assert ".md" in text
    assert '"missing"' not in text


def test_verify_names_the_file_of_one_flipped_byte(run, tmp_path):
    assert stillroom("verify", run).returncode == 0
    copied = tmp_path / "copy"
    shutil.copytree(run, copied)
    reader = read_artifact(copied).details["steps"]["reader"]
    victim = copied / reader / "output" / "reader.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    told = stillroom("verify", copied)
    assert told.returncode == 1
    assert "output/reader.safetensors" in told.stderr


@pytest.mark.slow  # test_student kills a flow in each step, test_reader a training
def test_killed_in_two_steps_and_resumed_ends_with_the_same_digests(brief, run, tmp_path):
    out = tmp_path / "run"
    brief.kill_in(out, "reader", 0.8, step_folders(run, ("index", "records")))
    brief.kill_in(out, "report", 0.3)
    code, said = brief.make(out, "--resume")
    assert code == 0, said
    kept = [name for name in STEPS if name != "report"]  # whose answers are timed
    assert [digests(out)[name] for name in kept] == [digests(run)[name] for name in kept]


def test_touched_file_alone_is_parsed_and_embedded_again(brief, run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    path = brief.documents / "alder.md"
    before = path.read_bytes()
    try:
        path.write_bytes(before + b"\nA new line about Alder and its bridge.\n")
        code, said = brief.make(out)
    finally:
        path.write_bytes(before)
    assert code == 0, said
    details = read_artifact(out / read_artifact(out).details["steps"]["index"]).details
    assert details["parsed"] == 1
    assert details["reused"] == 7
    assert len(list((out / "steps").iterdir())) == len(STEPS)


def test_of_one_document_a_reader_is_made(brief, tmp_path):
    whole, brief.documents = brief.documents, tmp_path / "documents"
    brief.documents.mkdir()
    shutil.copy(whole / "alder.md", brief.documents)
    code, said = brief.make(tmp_path / "run")
    assert code == 0, said
    assert "index" in read_artifact(tmp_path / "run").details["steps"]


def test_people_judge_and_teach(brief, tmp_path):
    rows = ["question,answer,evidence"]
    for path in sorted(brief.documents.iterdir()):
        facts = [line for line in path.read_text().splitlines() if line.startswith("The old")]
        for fact in facts:
            words = fact.removesuffix(".").split()
            place, town, what = words[2], words[4], " ".join(words[6:9])
            rows.append(f"What comes from the {place} of {town}?,{what},{fact}")
            rows.append(f"What is made at {town} by the {place}?,{what},{fact}")
    rows.append("Who is the mayor of Alder?,,")
    (tmp_path / "people.csv").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "run"
    code, said = brief.make(out, "--questions", str(tmp_path / "people.csv"))
    assert code == 0, said
    steps = read_artifact(out).details["steps"]
    assert list(steps) == ["index", "records", "learned", "judged", "reader", "report"]
    parts = [
        read_artifact(out / steps[name]).details["questions"] for name in ("learned", "judged")
    ]
    assert sum(parts) == len(rows) - 1
    assert min(parts) > 20
    assert "only questions by people can decide" not in str(read_artifact(out).details)
