import json

import pytest

from stillroom.cli.results import print_run
from stillroom.errors import DataError
from stillroom.flow.make import read_make_recipe, run_make
from stillroom.flow.opening import find_checkpoint, find_reader, open_run, set_reader
from stillroom.flow.pipeline import FlowRun, collect_decision
from stillroom.flow.run import run_recipe
from stillroom.jobs.progress import LineReporter
from stillroom.provenance import Artifact, read_artifact
from stillroom.provenance.signing import (
    KEY_VARIABLE,
    create_key_pair,
    load_signing_key,
    sign_artifact,
)
from stillroom.provenance.verify import verify_artifact
from stillroom.rag.answer_strategies.quote import Quote
from stillroom.rag.generation.refusals import REFUSAL
from stillroom.recipes import parse_recipe, render_template
from stillroom.testing import tiny_checkpoint


@pytest.fixture
def too_little(tmp_path):
    """Return the settings of a run on a folder that gives no record."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text("Hello to all. It works.", encoding="utf-8")
    (tmp_path / "documents" / "empty.txt").touch()
    teacher = tiny_checkpoint(tmp_path / "teacher", layers=4, context_length=2048)
    return [f"inputs.teacher={teacher}", "inputs.embedder=builtin:static"]


def test_a_folder_that_gives_no_record_ends_as_an_index_that_can_be_asked(tmp_path, too_little):
    out = tmp_path / "run"
    artifact = run_make(tmp_path / "documents", out, overrides=too_little)
    assert list(artifact.details["steps"]) == ["index"]
    assert "no training record is kept" in artifact.details["skipped"]["records"]
    assert artifact.details["skipped"]["report"] == "it needs reader"
    assert "no training record is kept" in (out / "report.html").read_text(encoding="utf-8")
    assert find_reader(out) == ""
    with open_run(out) as opened:
        *_, answer = opened.ask("What works?", answering=Quote(reader="builtin:overlap"))
        assert answer.hits[0].passage.text == "Hello to all. It works."
    assert find_checkpoint(str(out)) == (tmp_path / "teacher", None)
    again = run_make(tmp_path / "documents", out, overrides=too_little)
    assert again.digest == artifact.digest
    assert read_artifact(out).digest == artifact.digest


def test_an_opened_run_answers_although_another_run_replaces_its_steps(tmp_path, too_little):
    documents, out = tmp_path / "documents", tmp_path / "run"
    first = run_make(documents, out, overrides=too_little)
    with open_run(out) as opened:
        (documents / "a.txt").write_text("Hello to all. It rests.", encoding="utf-8")
        second = run_make(documents, out, overrides=too_little)
        assert second.details["steps"] != first.details["steps"]
        assert (out / first.details["steps"]["index"]).is_dir()
        assert verify_artifact(out) == []
        with open_run(out) as later:
            *_, answer = later.ask("What rests?", answering=Quote(reader="builtin:overlap"))
            assert answer.hits[0].passage.text == "Hello to all. It rests."
        *_, answer = opened.ask("What works?", answering=Quote(reader="builtin:overlap"))
        assert answer.hits[0].passage.text == "Hello to all. It works."
    run_make(documents, out, overrides=too_little)
    assert [folder.name for folder in (out / "steps").iterdir()] == [
        second.details["steps"]["index"].removeprefix("steps/")
    ]


@pytest.mark.parametrize(
    ("change", "where"),
    [("inputs.teacher=/no/such/model", "missing"), ("steps.index.max_failed=0", "failed")],
)
def test_a_second_run_that_fails_leaves_the_finished_one_whole(tmp_path, too_little, change, where):
    documents, out = tmp_path / "documents", tmp_path / "run"
    run_make(documents, out, overrides=too_little)
    before = (out / "recipe.yaml").read_bytes()
    (documents / "b.pdf").write_bytes(b"no page")
    with pytest.raises(DataError) as caught:
        run_make(documents, out, overrides=[*too_little, change])
    assert where in caught.value.code
    assert (out / "recipe.yaml").read_bytes() == before
    assert bool(list(out.glob("steps/.*.partial"))) == (where == "failed")
    assert verify_artifact(out) == []


def test_a_folder_without_text_ends_as_an_empty_index_and_says_so(tmp_path, too_little, capsys):
    documents, out = tmp_path / "documents", tmp_path / "run"
    (documents / "a.txt").unlink()
    artifact = run_make(documents, out, overrides=too_little)
    assert artifact.details["skipped"].keys() == {"records", "reader", "report"}
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "the index is empty" in report
    assert "The index can still answer" not in report
    print_run(out, artifact)
    assert "answers  nothing: no document could be used" in capsys.readouterr().out
    with open_run(out) as opened:
        *_, answer = opened.ask("What works?")
    assert (answer.hits, answer.completion.text) == ((), REFUSAL)
    (documents / "a.txt").write_text("Hello to all. It works.", encoding="utf-8")
    full = run_make(documents, out, overrides=too_little)
    assert read_artifact(out / full.details["steps"]["index"]).details["passages"] == 1
    (documents / "a.txt").write_text("")  # a folder that broke empties no index
    with pytest.raises(DataError) as caught:
        run_make(documents, out, overrides=too_little)
    assert caught.value.code == "rag.documents-failed"
    with open_run(out) as opened:
        *_, answer = opened.ask("What works?", answering=Quote(reader="builtin:overlap"))
    assert answer.hits


def test_without_a_model_to_fall_back_on_such_a_run_fails_with_the_reason(tmp_path, too_little):
    (tmp_path / "documents" / "empty.txt").unlink()
    settings = [
        *too_little,
        f"inputs.documents={tmp_path / 'documents'}",
        "steps.student.student={layers: 2, max_parameters: 1.0}",
        "answer={index: index, model: merged}",
    ]
    recipe = parse_recipe(render_template("flow", "student"), overrides=settings, folder=tmp_path)
    with pytest.raises(DataError) as caught:
        run_recipe(recipe, tmp_path / "run")
    assert caught.value.code == "synth.nothing-kept"


def test_reader_whose_base_is_not_here_is_left_out(tmp_path, too_little):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "What works?", "answer": "It", "evidence": "It works."}\n')
    text = f"""\
kind: flow
inputs: {{documents: documents, model: {tmp_path / "teacher"}}}
steps:
  index:
    kind: rag.index
    documents: {{from: inputs.documents}}
    embedder: builtin:static
    max_failed: 1.0
  reader:
    kind: rag.reader
    index: {{from: index}}
    questions: [questions.jsonl]
    base: hub:no/such
answer: {{index: index, reader: reader, model: inputs.model}}
"""
    artifact = run_recipe(parse_recipe(text, folder=tmp_path), tmp_path / "run")
    assert "reader" in artifact.details["skipped"]
    assert find_reader(tmp_path / "run") == ""


@pytest.mark.parametrize(
    ("settings", "reader"),
    [
        ({}, "own"),
        ({"answering": "quote"}, "own"),
        ({"answering": Quote(max_quotes=1)}, "own"),
        ({"answering": Quote(reader="builtin:overlap")}, "builtin:overlap"),
    ],
)
def test_run_reads_with_its_reader_unless_another_is_named(settings, reader):
    method = set_reader(settings, "own")["answering"]
    assert isinstance(method, Quote)
    assert method.reader == reader


def test_strategies_that_write_and_runs_without_a_reader_stay_as_they_are():
    assert set_reader({"answering": "generate"}, "own") == {"answering": "generate"}
    assert set_reader({"k": 2}, "") == {"k": 2}


@pytest.mark.parametrize(
    ("reader", "skipped", "expected"),
    [
        ("reader", {}, "steps/reader-1"),
        ("reader", {"reader": "too few"}, ""),
        ("builtin:overlap", {}, "builtin:overlap"),  # which its report found better
        ("", {}, ""),
    ],
)
def test_run_names_the_reader_that_its_report_chose(tmp_path, reader, skipped, expected):
    details = {
        "answer": {"index": "index", **({"reader": reader} if reader else {}), "model": "m"},
        "steps": {} if skipped else {"reader": "steps/reader-1"},
        "skipped": skipped,
    }
    told = {"format": 1, "kind": "report", "files": [], "parents": [], "details": details}
    (tmp_path / "artifact.json").write_text(json.dumps(told), encoding="utf-8")
    found = find_reader(tmp_path)
    assert found == (str(tmp_path / expected) if expected.startswith("steps") else expected)


def test_too_few_questions_are_named_before_the_first_step(tmp_path, too_little, capsys):
    rows = [f"What works {at}?;It" for at in range(19)] + ["Who sings?;", "Who dances?;"]
    people = tmp_path / "people.csv"
    people.write_text("\n".join(["question;answer", *rows]), encoding="utf-8")
    with pytest.raises(DataError):
        run_make(
            tmp_path / "documents", tmp_path, questions=people, overrides=too_little
        )  # the folder is no run
    assert "19 questions with an answer: 20 are required to decide" in capsys.readouterr().err


def test_people_questions_are_used_where_no_record_is_kept(tmp_path, too_little):
    facts = [f"Item {at} works." for at in range(70)]
    (tmp_path / "documents" / "b.txt").write_text("\n\n".join(facts), encoding="utf-8")
    rows = [f"What works {at}?;works;{fact}" for at, fact in enumerate(facts)]
    text = "\n".join(["question;answer;evidence", *rows])
    (tmp_path / "people.csv").write_text(text, encoding="utf-8")
    settings = [
        *too_little,
        "steps.reader.base=hub:no/such",
        "steps.report.compare.readers.packaged=builtin:overlap",
        "steps.report.compare.model_questions=0",
    ]
    artifact = run_make(
        tmp_path / "documents",
        tmp_path / "run",
        questions=tmp_path / "people.csv",
        overrides=settings,
    )
    skipped = artifact.details["skipped"]
    assert skipped.keys() == {"records", "reader"}
    assert "needs" not in skipped["reader"]  # its own reason: it had the questions
    assert artifact.details["decision"].startswith("Answers come from ")
    assert "nothing was learned" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_reader_that_won_is_named_beside_the_step_that_trained(tmp_path, monkeypatch):
    line = "Reader: word search. It is more often right."
    details = {"decision": {"line": line, "reader": "builtin:overlap", "notes": ["Generated."]}}
    artifacts = {"report": Artifact("report", (), details=details)}
    recipe = read_make_recipe(tmp_path)
    described = FlowRun(recipe, tmp_path / "run", None)._describe_answer(artifacts)
    assert (described["reader"], described["trained_reader"]) == ("builtin:overlap", "reader")
    told = collect_decision(artifacts, described)
    assert told["decision"] == "Answers come from word search. It is more often right."
    assert told["notes"] == ["Generated."]


def test_a_step_made_again_to_the_same_bytes_leaves_a_run_that_verifies(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "mill.md").write_text("# Mill\n\nThe mill grinds corn.\n")
    question = {"id": "1", "question": "What does the mill grind?", "answers": ["corn"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "script.json").write_text('{"*": "corn"}')

    def run(share):
        recipe = f"""
version: 1
kind: flow
steps:
  index: {{kind: rag.index, documents: "{tmp_path}/documents", embedder: builtin:static,
           max_failed: {share}}}
  scores: {{kind: rag.answer_evaluation, index: {{from: index}},
            questions: "{tmp_path}/questions.jsonl", model: "scripted:{tmp_path}/script.json",
            pipelines: ["keyword=>quote:reader=builtin:overlap"]}}
"""
        artifact = run_recipe(parse_recipe(recipe), tmp_path / "run")
        return [artifact.details["steps"][name] for name in ("index", "scores")]

    first, second = run(0.2), run(0.3)
    assert read_artifact(tmp_path / "run" / second[0]).details["documents"] == 1
    assert first[0] != second[0]  # of other settings, and the same bytes
    assert verify_artifact(tmp_path / "run") == []


def test_a_signed_run_that_is_made_again_says_that_its_signature_no_longer_holds(
    tmp_path, too_little, capsys, monkeypatch
):
    out, again = tmp_path / "run", "its signature no longer holds; sign it again: stillroom sign "
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    run_make(tmp_path / "documents", out, overrides=too_little, reporter=LineReporter())
    private, _ = create_key_pair(tmp_path / "me")
    sign_artifact(out, load_signing_key(private))
    capsys.readouterr()
    run_make(tmp_path / "documents", out, overrides=too_little, reporter=LineReporter())
    assert f"{again}{out} --key" in capsys.readouterr().err
    monkeypatch.setenv(KEY_VARIABLE, str(private))
    run_make(tmp_path / "documents", out, overrides=too_little, reporter=LineReporter())
    assert again not in capsys.readouterr().err
