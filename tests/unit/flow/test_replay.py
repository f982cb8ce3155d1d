"""Replay of a small run: honest ones give no difference, forged ones are named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests import forged_run
from tests.forged_run import read_flow, step, write_inputs

from stillroom.cli.artifacts import verify_command
from stillroom.errors import IntegrityError, RecipeError
from stillroom.flow.job import run_job
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.flow.run import run_recipe
from stillroom.jobs import Job
from stillroom.jobs.journal import Journal, find_break
from stillroom.models.backends.scripted import ScriptedModel
from stillroom.provenance import digest_file, read_artifact, verify_artifact
from stillroom.provenance.signing import (
    create_key_pair,
    load_public_key,
    load_signing_key,
    open_envelope,
    read_claims,
    sign_artifact,
)
from stillroom.rag.ingestion import pipeline as ingestion
from stillroom.recipes import dump_recipe, load_recipe


def make(folder, out):
    run_recipe(read_flow(folder), out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def honest(folder):
    return make(folder, folder / "run")


@pytest.fixture
def run(honest, folder):
    """A copy of the honest run, to be forged."""
    out = folder / "forged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(honest, out)
    return out


def replay(run, amount="all", seed=0, **settings):
    return plan_replay(run, ReplayAmount.parse(amount), seed=seed, **settings).run()


def named(result):
    """Return each difference as job, segment and what is said of it."""
    return [(job.name.split("/")[-1].split("-")[0], one.name, str(one))
            for job, one in result.differences]  # fmt: skip


def seal(run):
    """Give every changed folder the digests that fit, as one who forges a run can."""
    forged_run.seal(run)
    assert verify_artifact(run) == []


def test_honest_run_replays_without_a_difference_whatever_is_drawn(honest):
    whole = replay(honest)
    assert named(whole) == []
    assert whole.open_jobs == []
    assert whole.drawn == whole.total > 30
    assert "a single forged one is found" in whole.power
    for seed in (1, 2):
        part = replay(honest, "5", seed)
        assert named(part) == []
        assert part.drawn == 5
    assert verify_artifact(honest) == []  # a replay writes nothing there


def test_cost_is_told_by_what_was_recorded_when_the_run_was_made(honest):
    whole = plan_replay(honest, ReplayAmount.parse("all"))
    made = sum(job.seconds for job in whole.jobs)
    assert whole.expected_seconds == pytest.approx(made)
    assert made > 0
    part = plan_replay(honest, ReplayAmount.parse("5"))
    assert 0 < part.expected_seconds < whole.expected_seconds
    assert f"takes about {part.expected_seconds:.0f} s of processor time" in part.describe()
    (records,) = (job for job in whole.jobs if "records" in job.name)
    assert sum(records.costs.values()) <= records.seconds


@pytest.mark.parametrize("seconds", ['"many"', "-5", "NaN", "1e999", "null", "[]"])
def test_recorded_times_that_are_none_do_not_hinder_a_replay(run, seconds):
    events = step(run, "records") / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    rows = [json.dumps(line | {"cpu_seconds": 0}) for line in lines]
    events.write_text("\n".join(rows).replace('"cpu_seconds": 0', f'"cpu_seconds": {seconds}'))
    plan = plan_replay(run, ReplayAmount.parse("9"), seed=1)
    assert 0 <= plan.expected_seconds < 1e4
    assert sum(len(job.drawn) for job in plan.jobs) == 9


def test_moved_run_is_replayed_with_the_inputs_of_the_stranger(honest, folder, tmp_path):
    shutil.copytree(honest, tmp_path / "run")
    shutil.copytree(folder, tmp_path / "inputs", ignore=lambda *_: {"run", "forged"})
    moved = {str(folder): str(tmp_path / "inputs")}
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        without = replay(tmp_path / "run", "3")
        assert f"--input {folder}/documents=PATH" in without.open_jobs[0].open
        result = replay(tmp_path / "run", "3", moved=moved)
        assert [job.open for job in result.open_jobs] == []
        assert named(result) == []
    finally:
        hidden.rename(folder)


def test_swapped_record_is_named(run):
    path = step(run, "records") / "output" / "records.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    row["messages"][-1]["content"] = "thirteen loads"
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    seal(run)
    found = named(replay(run, "1"))  # the output is assembled again whatever is drawn
    assert ("records", "output/records.jsonl") in [one[:2] for one in found]
    assert any("line 1" in what for *_, what in found)


def test_edited_figure_of_a_report_is_named(run):
    path = step(run, "report") / "output" / "report.json"
    report = json.loads(path.read_text())
    report["metrics"][0]["value"] = 0.99
    path.write_text(json.dumps(report))
    seal(run)
    found = {one[:2]: one[2] for one in named(replay(run, "1"))}
    assert "metrics[0].value is 0.99" in found["report", "output/report.json"]


def test_edited_figure_of_the_run_is_named(run):
    path = run / "report.json"
    report = json.loads(path.read_text())
    report["metrics"][0]["value"] = 0.99
    path.write_text(json.dumps(report))
    seal(run)
    found = {one[:2]: one[2] for one in named(replay(run, "1"))}
    assert "metrics[0].value is 0.99" in found["forged", "report.json"]


def answer_otherwise(monkeypatch):
    ask = ScriptedModel._complete

    def complete(model, prompt, sampling):
        completion = ask(model, prompt, sampling)
        if "mill of Alder grind" not in completion.text:
            return completion
        return replace(completion, text=completion.text.replace("grind", "sell"))

    monkeypatch.setattr(ScriptedModel, "_complete", complete)


def read_otherwise(monkeypatch):
    read = ingestion.read_document

    def poison(recipe, root, file, worker):
        document = read(recipe, root, file, worker)
        if file.path != "birch.md":
            return document
        return replace(document, text=document.text.replace("wheels of cheese", "wheels of poison"))

    monkeypatch.setattr(ingestion, "read_document", poison)


@dataclass(frozen=True)
class Forgery:
    """A run of changed software or inputs that says nothing of the change."""

    name: str
    change: Callable[[pytest.MonkeyPatch], None]
    job: str
    segment: str


CHANGED = [
    Forgery("another answer", answer_otherwise, "records", "units-"),
    Forgery("poisoned document", read_otherwise, "index", "documents/birch.md"),
]


@pytest.mark.parametrize("forgery", CHANGED, ids=lambda forgery: forgery.name)
def test_run_of_changed_software_is_named(forgery, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        forgery.change(patched)
        run = make(folder, tmp_path / "run")
    assert verify_artifact(run) == []
    result = replay(run)
    assert any(
        job == forgery.job and segment.startswith(forgery.segment)
        for job, segment, _ in named(result)
    )
    wrong = {one for one in named(result) if one[0] == forgery.job}
    assert len([one for one in wrong if one[1].startswith(forgery.segment)]) == 1
    (forged,) = {one.name for _, one in result.differences if one.name.startswith(forgery.segment)}
    total = result.total
    plans = [plan_replay(run, ReplayAmount.parse("25%"), seed=seed) for seed in range(40)]
    drawn = sum(any(forged in job.drawn for job in plan.jobs) for plan in plans)
    assert 2 <= drawn <= 20  # a quarter is expected: below .0005 and above .9992 by chance
    assert all(sum(len(job.drawn) for job in plan.jobs) == -(-total // 4) for plan in plans)


def test_third_merged_parent_is_named(folder, run):
    """The forger merges three models, and says it were two."""
    stated = step(run, "merged")
    recipe = load_recipe(stated / "recipe.yaml")
    third = recipe.model_copy(
        update={"models": (*recipe.models, replace_model(recipe.models[0], folder / "tune3"))}
    )
    forged = folder / "third"
    run_job(third, Job.start(forged, dump_recipe(third), overwrite=True))
    for part in ("output", "segments.jsonl"):
        target = stated / part
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        (forged / part).rename(target)
    artifact = read_artifact(stated)
    told = {**artifact.details, "segments": read_artifact(forged).details["segments"]}
    (stated / "artifact.json").write_text(json.dumps(replace(artifact, details=told).to_json()))
    seal(run)
    whole = replay(stated)
    assert len([one for one in named(whole) if one[1].startswith("tensors/")]) > 10
    alone = replay(stated, "1")  # nearly every tensor was forged
    assert [one[1].startswith("tensors/") for one in named(alone)] == [True]


def replace_model(entry, path):
    return entry.model_copy(update={"model": str(path)})


def test_removed_line_of_a_journal_is_named(run):
    path = step(run, "report") / "committed" / "readings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    assert "is broken at line 2" in find_break(path)
    seal(run)
    found = named(replay(run, "1"))
    assert any("is broken at line 2" in what for *_, what in found)
    assert any("its line is not in committed/readings.jsonl" in what for *_, what in found)


def test_line_cut_from_the_end_of_a_journal_is_named(run):
    path = step(run, "report") / "committed" / "readings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    seal(run)
    assert any("its line is not in" in what for *_, what in named(replay(run, "1")))


def test_changed_list_of_segments_is_named(run):
    path = step(run, "records") / "segments.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    seal(run)
    assert any("segments, and artifact.json states" in what for *_, what in named(replay(run, "1")))


@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("records", "model=http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1 answered"),
        (
            "report",
            "pipelines=['keyword+endpoint(address=http://127.0.0.1:1/v1#m)=>generate']",
            "it would call a server: keyword+endpoint(address=http://127.0.0.1:1/v1#m)",
        ),
        ("records", "budget.minutes=5", "budget.minutes may have ended it"),
        ("records", "model=/nowhere/teacher", "its input model is not at /nowhere/teacher"),
        ("index", 'store={name: postgres, address: "${env:STORE}"}', "the index is in postgres"),
    ],
)
def test_what_cannot_be_recomputed_stays_open_with_the_reason(
    name, setting, reason, run, monkeypatch
):
    monkeypatch.setenv("STORE", "postgresql://127.0.0.1:1/none")
    recipe = step(run, name) / "recipe.yaml"
    recipe.write_text(dump_recipe(load_recipe(recipe, [setting])))
    artifact = replace(read_artifact(step(run, name)), recipe_digest=digest_file(recipe))
    (step(run, name) / "artifact.json").write_text(json.dumps(artifact.to_json()))
    seal(run)
    result = replay(run, "1")
    assert [job.open for job in result.open_jobs if reason in job.open]
    levels = result.to_statement()["predicate"]["verifiedLevels"]
    assert levels != ["STILLROOM_REPLAYED"]


def test_parent_that_is_not_here_stays_open(run):
    shutil.rmtree(step(run, "index"))
    opened = [one.open for one in replay(step(run, "records"), "1").open_jobs]
    assert any("was made from it (passages), but it is not here" in reason for reason in opened)


def test_summary_is_an_in_toto_statement(honest):
    statement = replay(honest, "2").to_statement()
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/verification_summary/v1"
    assert statement["subject"][0]["digest"]["sha256"] == digest_file(honest / "artifact.json")
    predicate = statement["predicate"]
    required = {"verifier", "timeVerified", "resourceUri", "policy", "verificationResult"}
    assert required <= predicate.keys()
    assert predicate["verificationResult"] == "PASSED"
    assert predicate["verifiedLevels"] == ["STILLROOM_REPLAYED_IN_PART"]  # two of its segments
    whole = replay(honest).to_statement()["predicate"]
    assert whole["verifiedLevels"] == ["STILLROOM_REPLAYED"]


def test_other_machine_is_named(run):
    folder = step(run, "merged")
    artifact = read_artifact(folder)
    host = {**artifact.host, "instructions": "x86_64 avx512vnni"}
    versions = {**artifact.versions, "torch": "1.0"}
    changed = replace(artifact, host=host, versions=versions)
    (folder / "artifact.json").write_text(json.dumps(changed.to_json()))
    (job,) = plan_replay(folder, ReplayAmount.parse("1")).jobs
    assert any("instruction set: made with x86_64 avx512vnni" in line for line in job.machine)
    assert any("torch: made with 1.0" in line for line in job.machine)


@pytest.mark.parametrize(("text", "of_a_thousand"), [("all", 1000), ("59", 59), ("10%", 100)])
def test_amounts(text, of_a_thousand):
    assert ReplayAmount.parse(text).of(1000) == of_a_thousand


@pytest.mark.parametrize("text", ["", "none", "0", "-1", "2.5", "nan", "101%"])
def test_no_amounts(text):
    with pytest.raises(RecipeError) as caught:
        ReplayAmount.parse(text)
    assert caught.value.code == "replay.amount"


def test_journal_of_an_earlier_version_is_read_and_continued(tmp_path):
    from stillroom.provenance import canonical_json, digest_bytes

    path = Path(tmp_path / "old.jsonl")
    bodies = [canonical_json([key, number]).encode() for number, key in enumerate("ab")]
    path.write_bytes(b"".join(digest_bytes(b)[:16].encode() + b" " + b + b"\n" for b in bodies))
    with Journal(path) as journal:
        assert journal.keys() == ["a", "b"]
        journal.put("c", 2)
    with Journal(path) as journal:
        assert [journal[key] for key in "abc"] == [0, 1, 2]
    assert find_break(path) == ""


def verify(*arguments):
    return CliRunner().invoke(verify_command, [*map(str, arguments)])


def test_command_says_what_was_drawn_and_writes_a_signed_summary(
    honest, run, tmp_path, monkeypatch
):
    create_key_pair(tmp_path / "me")
    monkeypatch.setenv("STILLROOM_SIGNING_KEY", str(tmp_path / "me.key"))
    sign_artifact(run, load_signing_key(tmp_path / "me.key"))
    told = verify(run, "--replay", "2", "--seed", "1", "--out", tmp_path / "summary.json")
    assert told.exit_code == 0, told.output
    assert "2 of " in told.output
    assert "Such a draw finds a forgery of" in told.output
    envelope = json.loads((tmp_path / "summary.json").read_text())
    assert envelope == read_claims(run)[-1]
    opened = open_envelope(envelope, [load_public_key(tmp_path / "me.pub")])
    assert json.loads(opened.payload)["predicate"]["stillroom_replay"]["seed"] == 1
    printed = json.loads(verify(honest, "--replay", "1", "--json").stdout)
    assert printed["replay"]["drawn"] == 1
    assert verify(honest).exit_code == verify(run).exit_code == 0


def test_a_summary_replaces_no_file(honest, tmp_path):
    out = tmp_path / "summary.json"
    out.write_text("mine")
    told = verify(honest, "--replay", "1", "--out", out)
    assert (told.exception.code, out.read_text()) == ("data.exists", "mine")
    assert "--overwrite" in told.exception.problems[0].next
    assert verify(honest, "--replay", "1", "--out", out, "--overwrite").exit_code == 0
    assert json.loads(out.read_text())["_type"] == "https://in-toto.io/Statement/v1"


def test_command_names_what_differs(run):
    path = step(run, "records") / "output" / "records.jsonl"
    path.write_text(path.read_text().replace("barley", "parsley"))
    seal(run)
    told = verify(run, "--replay", "1")
    assert isinstance(told.exception, IntegrityError)
    assert told.exception.code == "replay.differs"
    assert "output/records.jsonl differs: line" in str(told.exception)


def test_input_without_two_places_is_refused(honest):
    told = verify(honest, "--replay", "1", "--input", "notes")
    assert told.exception.code == "replay.input"


def test_place_that_no_input_is_at_is_warned_of(honest):
    told = verify(honest, "--replay", "1", "--input", "/srv/notes=./notes")
    assert told.exit_code == 0
    assert "warning: no input is moved from /srv/notes; recipe.yaml of a job" in told.stderr


def test_damaged_list_of_segments_is_refused(run):
    path = step(run, "records") / "segments.jsonl"
    path.write_text(path.read_text() + path.read_text())
    seal(run)
    with pytest.raises(IntegrityError, match="is named twice") as caught:
        replay(run)
    assert caught.value.code == "replay.segments"
