"""``stillroom judge``: verdicts on the answers that ``ask`` printed."""

import base64
import json
import shlex
import shutil

import pytest
from click.testing import CliRunner
from tests.console_folder import build_folder, build_tenants

from stillroom.cli import stillroom
from stillroom.evaluate.qa.judgments import (
    AskedAnswer,
    JudgmentStore,
    find_judgments,
    make_moment,
)
from stillroom.provenance.digests import digest_bytes

BY_WORDS = "quote:reader=builtin:overlap,min_probability=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("judge"))


def call(*arguments, code=0):
    told = CliRunner().invoke(stillroom, [str(one) for one in arguments])
    assert told.exit_code == code, (told.output, told.exception)
    return told.output


def test_an_answer_is_judged_listed_and_deleted(folder):
    run = folder / "run"
    text = call("ask", run, "Where does the river rise?", "--answering", BY_WORDS)
    line = next(line for line in text.splitlines() if line.startswith("judge "))
    name = shlex.split(line)[4]
    assert "The river rises in the north." in call("judge", run, name, "--right")
    call("ask", run, "Where does it end?", "--answering", BY_WORDS)
    told = json.loads(call("judge", run, "--quote", "ends in the sea", "--json"))
    assert told["answers"] == ["ends in the sea"]
    assert told["judged"]["reader"] == "overlap"
    told = json.loads(call("judge", run, "--list", "--json"))
    assert [one["verdict"] for one in told["judgments"]] == ["right", "quote"]
    assert all(one["stands"] for one in told["judgments"])
    text = call("judge", run, "--list")
    assert "2 judged answers" in text
    assert "0 with evidence that the index no longer holds" in text
    assert call("judge", run / "steps/index", "--list") == text  # the index of a run is the run's
    told = json.loads(call("ask", run, "When?", "--answering", BY_WORDS, "--json"))
    text = call("judge", run, told["id"][:6], "--absent")
    use = "trained to leave it unanswered" if "train.jsonl" in text else "evaluated on it"
    assert f"readers are {use}" in text
    listed = json.loads(call("judge", run, "--list", "--json"))["judgments"]
    assert [one["stands"] for one in listed] == [True, True, None]
    assert "deleted" in call("judge", run, "--delete", told["id"])
    assert "2 judged answers" in call("judge", run, "--list")


@pytest.mark.parametrize(
    "options",
    [[], ["--right", "--list"], ["--right", "--quote", "x"], ["abc", "--list"],
     ["abc", "--delete", "x"]],
)  # fmt: skip
def test_one_thing_is_done_at_a_time(folder, options):
    call("judge", folder / "run", *options, code=2)


def test_an_answer_is_given_where_nothing_can_be_stored(folder, monkeypatch):
    (folder / "blocked").write_text("a file stands where the folder would be")
    monkeypatch.setattr(
        "stillroom.evaluate.qa.judgments.find_judgments",
        lambda path: JudgmentStore(folder / "blocked"),
    )
    text = call("ask", folder / "run", "Where?", "--answering", "quote:reader=builtin:overlap")
    assert "judge " not in text


def test_the_command_that_is_printed_can_be_run(folder, tmp_path):
    run = tmp_path / "my run"
    shutil.copytree(folder / "run", run)
    text = call("ask", run, "Where does the river rise?", "--answering", BY_WORDS)
    line = next(line for line in text.splitlines() if line.startswith("judge "))
    command = shlex.split(line.partition("(")[0])
    assert "right:" in call(*command[2:])


@pytest.mark.parametrize("reason", ["tenants", "variable"])
def test_no_answer_is_kept_where_the_index_has_tenants_or_nobody_wants_it(
    folder, tmp_path, monkeypatch, reason
):
    index = folder / "run"
    if reason == "tenants":
        index = build_tenants(tmp_path) / "index"
        command = ["ask", index, "What is the canary?", "--tenant", "a"]
    else:
        shutil.copytree(folder / "run", index := tmp_path / "run")
        monkeypatch.setenv("STILLROOM_KEEP_ANSWERS", "0")
        command = ["ask", index, "Where does the river rise?"]
    text = call(*command, "--answering", BY_WORDS)
    assert "[1]" in text
    assert "judge " not in text
    assert not index.with_name(f"{index.name}.judgments").exists()


def test_what_is_printed_steers_no_terminal(folder, tmp_path):
    shutil.copytree(folder / "run", run := tmp_path / "run")
    store = find_judgments(run)
    store.keep_answer(AskedAnswer("Hi\x1b]0;owned\x07all?", "x", time=make_moment()))
    assert "\x1b" not in call("judge", run, "--absent")
    text = call("judge", run, "--list")
    assert "\x1b" not in text
    assert "\\x1b]0;owned" in text


def test_a_quote_that_the_documents_no_longer_hold_is_said_to_be_gone(folder, tmp_path):
    shutil.copytree(folder / "run", run := tmp_path / "run")
    quote = {"text": "It was so.", "answer_start": 0}
    answer = AskedAnswer("How was it?", "It was so. [1]", quotes=(quote,), time=make_moment())
    find_judgments(run).keep_answer(answer)
    assert "the documents changed" in call("judge", run, "--right")


def test_a_judged_question_is_answered_as_it_was_judged(folder, tmp_path):
    shutil.copytree(folder / "run", run := tmp_path / "run")
    ask = ["ask", run, "Where does the river rise?", "--answering", BY_WORDS]
    call(*ask)
    name = json.loads(call("judge", run, "--quote", "It ends in the sea.", "--json"))["id"]
    text = call(*ask)
    assert text.startswith("It ends in the sea. [")
    assert "judged   by a person on 20" in text
    assert f"this sentence answers ({name})" in text
    evidence = tmp_path / "evidence.json"
    call(*ask, "--evidence", evidence)
    lineage = call("show", evidence, "--lineage", "--within", run)
    assert "origin human: follows a person's judgment (quote) of 20" in lineage
    told = call("verify", evidence, "--within", run)
    assert "asked again: the same answer" in told
    assert "the judgment" not in told
    forged = json.loads(evidence.read_text())
    stated = json.loads(base64.b64decode(forged["payload"]))
    stated["predicate"] |= {"question": "Where does the river rise!"}
    payload = json.dumps(stated).encode()
    forged["payload"] = base64.b64encode(payload).decode()
    forged["payload_sha256"] = digest_bytes(payload)
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    told = call("verify", tmp_path / "forged.json", "--within", run)
    assert "is not stored beside the run as one of this question" in told
    call("judge", run, "--delete", name)
    told = call("verify", evidence, "--within", run)  # it was so, and is proved no more
    assert "asked again: the same answer" in told
    assert f"the judgment {name} that the answer follows is not stored" in told
    assert "judged " not in call(*ask)


@pytest.mark.slow  # a model answers
def test_questions_that_were_judged_are_measured_without_their_judgments(folder, tmp_path):
    shutil.copytree(folder / "run", run := tmp_path / "run")
    call("ask", run, "Where does the river rise?", "--answering", BY_WORDS)
    told = json.loads(call("judge", run, "--quote", "It ends in the sea.", "--json"))
    questions = tmp_path / f"run.judgments/{told['split']}.jsonl"
    measure = [f"index={run / 'steps/index'}", f"questions={questions}"]
    measure += [f"pipelines=['convex=>{BY_WORDS}']", f"model={run / 'steps/model'}"]
    call("run", "rag.answer_evaluation", *measure, "--out", tmp_path / "report")
    text = (tmp_path / "report/output/answers.jsonl").read_text()
    assert "The river rises in the north." in text
    assert "judged" not in text
