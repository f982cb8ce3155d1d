"""``stillroom judge``: verdicts on the answers that ``ask`` printed."""

import json

import pytest
from click.testing import CliRunner
from tests.console_folder import build_folder

from stillroom.cli import stillroom
from stillroom.evaluate.qa.judgments import JudgmentStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("judge"))


def call(*arguments, code=0):
    told = CliRunner().invoke(stillroom, [str(one) for one in arguments])
    assert told.exit_code == code, (told.output, told.exception)
    return told.output


def test_an_answer_is_judged_listed_and_deleted(folder):
    run = folder / "run"
    by_words = "quote:reader=builtin:overlap,min_probability=0"
    text = call("ask", run, "Where does the river rise?", "--answering", by_words)
    line = next(line for line in text.splitlines() if line.startswith("judge "))
    name = line.split("run ")[1].split()[0]
    assert "The river rises in the north." in call("judge", run, name, "--right")
    call("ask", run, "Where does it end?", "--answering", by_words)
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
    told = json.loads(call("ask", run, "When?", "--answering", by_words, "--json"))
    assert "absent" in call("judge", run, told["id"][:6], "--absent")
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
