"""Test questions out of files of records: what is found, what is not checked, what is told."""

import contextlib
import json

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from tests.unit.synth.conftest import run_in

from stillroom.cli import stillroom
from stillroom.errors import BackendError, DataError
from stillroom.jobs import Job
from stillroom.records import Message, Record, read_records, write_records
from stillroom.synth.dedup.benchmark_items import BenchmarkItem
from stillroom.synth.dedup.contamination import ContaminationChecker, MatchThresholds
from stillroom.synth.dedup.decontamination_job import decontaminate
from stillroom.synth.jobs.decontaminate import DecontaminationRecipe

QUESTION = (
    "How many pages of the red book does Julie read on Monday morning before the school bell?"
)
REWORDED = "Ahead of lessons, what share of a novel is finished by Julie?"
OTHER = "What is a fjord's depth in May?"
CLEAN = "Why do bees leave the hive in May with the old queen and half of the workers?"


def pair(asked, said="Four."):
    return Record((Message("user", asked), Message("assistant", said)))


@pytest.fixture
def files(tmp_path):
    write_records(tmp_path / "test.jsonl", [pair(QUESTION), pair(OTHER)])
    changed = QUESTION.replace("red", "green").replace("Monday", "Friday")
    rows = [pair(QUESTION), pair(f"Dear all. {changed} Thanks."), pair(REWORDED), pair(CLEAN)]
    write_records(tmp_path / "r.jsonl", rows)
    return tmp_path


class Embedding:
    """Puts the rewording next to the question, and everything else apart."""

    dimensions, max_tokens, fingerprint, truncated = 4, 256, "test", 0

    def __init__(self, fails_after=10**9):
        self.left = fails_after

    def embed(self, texts, *, kind):
        self.left -= 1
        if self.left < 0:
            raise BackendError("the server is gone", code="backend.http")
        rows = {
            QUESTION: [1, 0, 0, 0],
            REWORDED: [0.9, 0.436, 0, 0],
            CLEAN: [0, 0, 1, 0],
            OTHER: [0, 1, 0, 0],
        }
        return np.array([rows.get(text, [0, 0, 0, 1]) for text in texts], dtype=np.float32)


class Judging:
    def __init__(self, says):
        self.says = says

    def score(self, prompts, completions):
        if self.says is None:
            raise BackendError("the judge is gone", code="backend.http")

        class Score:
            def __init__(self, mean):
                self.mean = mean

        assert QUESTION in prompts[0].messages[0].content
        return [Score(0.0 if word == self.says else -1.0) for word in completions]


def plan(files, **more):
    return DecontaminationRecipe(
        records=[str(files / "r.jsonl")], against=[str(files / "test.jsonl")], **more
    )


def counts_of(chosen, out, *models):
    return run_in(out, decontaminate, chosen, *models).details


def kept(out):
    return [one.messages[0].content for one in read_records(out)]


def test_the_command_tells_what_fell_and_what_was_not_looked_for(files):
    words = ["run", "synth.decontaminate", f"records=[{files / 'r.jsonl'}]"]
    words += [f"against=[{files / 'test.jsonl'}]", "--out", files / "out"]
    done = CliRunner().invoke(stillroom, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0
    told = "2 of 4 records are clean; 2 contain a test item (1 near, 1 whole); 1 of 2 items were"
    assert told in done.output
    assert "paraphrases were not searched" in done.output
    assert kept(files / "out") == [REWORDED, CLEAN]
    lines = (files / "out/output/contaminated.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"]["row"] for line in lines] == [1, 1]
    items = json.loads((files / "out/output/items.json").read_text())
    assert [item["records"] for item in items] == [2, 0]


def test_a_threshold_that_leaves_no_record_is_said(files):
    words = ["run", "synth.decontaminate", f"records=[{files / 'test.jsonl'}]", "near=0.000001"]
    words += [f"against=[{files / 'test.jsonl'}]", "--out", files / "out"]
    done = CliRunner().invoke(stillroom, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0
    assert "warning: 0 of 2 records are clean" in done.output


def test_rewordings_are_found_by_an_embedder(files):
    told = counts_of(plan(files), files / "out", Embedding())
    assert told["kinds"] == {"near": 1, "rephrased": 1, "whole": 1}
    assert kept(files / "out") == [CLEAN]


@pytest.mark.parametrize(("says", "rephrased"), [("yes", 1), ("no", 0)])
def test_a_judge_decides_on_what_is_in_doubt(files, says, rephrased):
    chosen = plan(files, paraphrases={"embedder": "e", "min_score": 1.1, "judge": {"model": "j"}})
    told = counts_of(chosen, files / "out", Embedding(), Judging(says))
    assert told["kinds"].get("rephrased", 0) == rephrased
    assert told["unchecked"] == 0


@pytest.mark.parametrize(
    ("embedder", "judge", "unchecked"),
    [
        (Embedding(fails_after=0), None, [REWORDED, CLEAN]),
        (Embedding(fails_after=1), None, [REWORDED, CLEAN]),
        (Embedding(), Judging(None), [REWORDED]),
    ],
)
def test_what_could_not_be_checked_is_not_called_clean(files, embedder, judge, unchecked):
    chosen = plan(files, paraphrases={"embedder": "e", "min_score": 1.1, "judge": {"model": "j"}})
    told = counts_of(chosen, files / "out", embedder, judge)
    assert told["unchecked"] == len(unchecked)
    assert "is gone" in told["why_unchecked"]
    assert kept(files / "out/output/unchecked.jsonl") == unchecked
    assert not set(unchecked) & set(kept(files / "out"))


def test_settings_that_cannot_work_are_refused(files):
    for wrong in ({"near": 0}, {"paraphrases": {"judge": {"model": "x"}}}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            plan(files, **wrong)


PASSAGE = (
    "The old mill of Elm was built by Ada Berg in 1831. It ground rye for nine villages. In the "
    "flood of 1874 its wheel was lost. Since then it has been a dairy that churns twice a week."
)
ASKED = "Which great flood took the wheel of the mill at Elm, as Ada Berg wrote?"
SIBLING = "How often does the dairy in the old mill of Elm churn?"


def check(items, records, tmp_path, embedder=None):
    """Return which of the records hold which item."""
    with contextlib.closing(Job.start(tmp_path / "job", "kind: synth.decontaminate\n")) as job:
        checker = ContaminationChecker(items, records, MatchThresholds(), job, embedder=embedder)
        return [one.match and one.match.item for one in checker.check(records)]


@pytest.mark.parametrize("form", ["{p}\n\n{q}", "Passage: {p}\nQuestion: {q}\nAnswer:"])
def test_a_question_is_compared_apart_from_its_passage(tmp_path, form):
    answer = "That of Saint Lucia"
    items = [BenchmarkItem(form.format(p=PASSAGE, q=ASKED), "test", 1, answer)]
    records = [
        pair(ASKED, answer),
        pair(f"Read this.\n\n{PASSAGE}\n\n{ASKED}", answer),
        pair(f"{PASSAGE}\n\nIn what water was it lost?", answer),  # its very answer
        pair(form.format(p=PASSAGE, q=SIBLING), "Twice a week."),
        pair(SIBLING, "Twice a week."),
        Record((Message("assistant", PASSAGE),)),
        *(pair(f"Why do bees of hive {n} swarm?", "They are many.") for n in range(40)),
    ]
    assert check(items, records, tmp_path)[:6] == [0, 0, 0, None, None, None]


def test_a_question_that_tells_nothing_needs_its_passage(tmp_path):
    items = [
        BenchmarkItem(f"{PASSAGE}\n\nWhat is it?", "test", 1),
        BenchmarkItem("Why do bees swarm?", "test", 2),
    ]
    records = [
        pair("What is it?", "A bee."),
        pair(f"{PASSAGE}\n\nWhat is it?", "A mill."),
        pair(f"{PASSAGE}\n\n{SIBLING}", "Twice."),
    ]
    assert check(items, records, tmp_path) == [None, 0, None]


class Alike:
    """Finds all texts alike."""

    dimensions, max_tokens, fingerprint, truncated = 2, 256, "alike", 0

    def embed(self, texts, *, kind):
        return np.array([[0.9, 0.436]] * len(texts), dtype=np.float32)


def test_another_answer_speaks_against_a_rewording_and_a_statement_is_none(tmp_path):
    items = [BenchmarkItem("What lost its wheel to the water?", "test", 1, "the mill")]
    records = [
        pair("Name what the water took the wheel of.", "It was the mill of Elm."),
        pair("Name what churns in that house.", "A dairy."),
        Record((Message("assistant", PASSAGE),)),
    ]
    assert check(items, records, tmp_path, Alike()) == [0, None, None]


@pytest.mark.parametrize(
    "told",
    [
        "State the year in which the Swedish chemist Nobel invented dynamite in his laboratory.",
        "Tell me in which year Swedish chemist Alfred Nobel did invent dynamite in a laboratory.",
    ],
)
def test_who_asks_without_a_question_mark_still_asks(tmp_path, told):
    asked = "In which year did the Swedish chemist Nobel invent dynamite in his laboratory?"
    stated = "The Swedish chemist Nobel did invent dynamite in his laboratory in Krümmel."
    records = [
        pair(told, "Done."),
        pair(f"Be brief.\n\n{told}", "Done."),
        pair("Why do bees swarm in May?", told),
        pair("Why do bees swarm in May?", stated),
        *(pair(f"Why do bees of hive {n} swarm?", "They are many.") for n in range(40)),
    ]
    assert check([BenchmarkItem(asked, "test", 1)], records, tmp_path)[:4] == [0, 0, None, None]


CODE = """def total(rows, least=3):
    found = 0
    for row in rows:
        if len(row) > least:
            found = found + row.weight
        else:
            row.skip(found)
    return found
"""
RENAMED = """def g(table, m=3):
    s = 0  # the sum
    for line in table:
        if m < len(line):
            s += line.weight
        else:
            line.skip(s)
    return s
"""
OTHER = """def g(table, m=3):
    while table.open():
        with table.lock as held:
            table[held] = [held, not m]
            yield held.name
    raise KeyError(m, table.path, table[0])
"""


@pytest.mark.parametrize(
    "item", [BenchmarkItem(CODE, "test", 1), BenchmarkItem("Add large rows.", "t", 1, CODE)]
)
def test_code_is_found_under_other_names(tmp_path, item):
    records = [pair("Write it.", f"```python\n{code}```") for code in (RENAMED, OTHER)]
    assert check([item], records, tmp_path) == [0, None]


def test_no_items_is_an_error(files):
    (files / "test.jsonl").write_text("")
    with pytest.raises(DataError) as caught:
        counts_of(plan(files), files / "out")
    assert caught.value.problems[0].code == "synth.no-records"


def test_short_code_is_found_under_other_names_and_another_function_is_not(tmp_path):
    item = (
        "function clamp(value, low, high) {\n  if (value < low) {\n    return low;\n  }\n"
        "  if (value > high) {\n    return high;\n  }\n  return value;\n}"
    )
    renamed = (
        "const limit = (x, a, b) => {\n  if (x < a) return a\n  if (x > b) return b\n  return x\n}"
    )
    other = "const total = (xs) => {\n  let t = 0\n  for (const x of xs) t += x\n  return t\n}"
    write_records(tmp_path / "test.jsonl", [pair(item)])
    write_records(tmp_path / "r.jsonl", [pair(renamed), pair(other)])
    assert counts_of(plan(tmp_path), tmp_path / "out")["kinds"] == {"rephrased": 1}
    assert kept(tmp_path / "out") == [other]


def test_items_too_short_to_be_found_within_a_text_are_counted(files):
    write_records(files / "short.jsonl", [Record((Message("user", "Who?"),))])
    words = ["run", "synth.decontaminate", f"records=[{files / 'r.jsonl'}]"]
    words += [f"against=[{files / 'short.jsonl'}]", "--out", files / "out"]
    done = CliRunner().invoke(stillroom, list(map(str, words)), catch_exceptions=False)
    assert "0 of 1 items were found" in done.output
    assert "1 items have so few words that only a whole message can be one of them" in done.output
